"""RunConfig -> the ordered stages of a run, each with a hash of everything its output depends on.

A stage whose manifest carries the planned hash is done. Hashes cover configuration, base model,
template, seed, the files a stage reads and, through their hashes, all stages before it; they leave
out what cannot change a result (number of processes, checkpoint policy, metric sinks). Not here:
running anything (`execute.py`).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from megatron_reason import __version__
from megatron_reason.curation.base import StageConfig, build_stage
from megatron_reason.errors import ConfigError
from megatron_reason.files import hash_file, hash_text, write_json
from megatron_reason.models.architecture import read_architecture
from megatron_reason.models.divisibility import check_topology
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.pipeline.variants import VariantConfig
from megatron_reason.registry import suggest

PLAN = "plan.json"
REPORT = "report"
REPORT_PAGE = Path("report", "index.html")
BASE = "base"
_SAMPLED_BYTES = 1 << 16
_LONGEST_PATH, _LONGEST_NAME = 4096, 255

Kind = Literal["curate", "train", "eval", "report"]


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a run, and the folder it writes to."""

    folder: str
    """Folder below the run's, `<number>-<name>`."""
    name: str
    """Name by which other stages and the command line refer to it."""
    kind: Kind
    """What is done."""
    stage: str
    """Kind of curation stage, or the kind again."""
    variant: str | None
    """Model it is about: a variant, `base`, or None for curation and report."""
    hash: str
    """Changes whenever the output could."""
    inputs: tuple[str, ...] = field(default=())
    """Names of the stages it reads."""


def make_plan(config: RunConfig) -> list[PlannedStage]:
    """Stages of a run, in the order in which they are run."""
    return list(_Planner(config).stages())


def write_plan(folder: Path, plan: list[PlannedStage]) -> None:
    """Write `plan.json` into the run folder."""
    rows = [asdict(stage) for stage in plan]
    write_json(folder / PLAN, [{k: v for k, v in row.items() if k != "inputs"} for row in rows])


def find_stage(plan: list[PlannedStage], name: str, option: str) -> int:
    """Index of the stage called `name`, by its name or its folder.

    Raises:
        ConfigError: no such stage.
    """
    for index, stage in enumerate(plan):
        if name in (stage.name, stage.folder):
            return index
    raise ConfigError(
        option, f"this run has no stage '{name}'.", suggest(name, [stage.name for stage in plan])
    )


def train_name(variant: str) -> str:
    """Name of the stage that trains a variant."""
    return f"train-{variant}"


def eval_name(variant: str) -> str:
    """Name of the stage that measures a variant, or the base model."""
    return f"eval-{variant}"


def model_identity(path: str) -> str:
    """What stands for a model in hashes: of a folder its contents, of anything else its name.

    Of each weight file, its size and both ends stand for the whole: reading all of a large model
    would take minutes, and training changes every tensor.
    """
    folder = Path(path)
    if not folder.is_dir():
        return path
    parts: list[str] = []
    for file in sorted(item for item in folder.iterdir() if item.is_file()):
        size = file.stat().st_size
        if size <= 2 * _SAMPLED_BYTES:
            parts.append(f"{file.name} {hash_file(file)}")
            continue
        with file.open("rb") as stream:
            head = stream.read(_SAMPLED_BYTES)
            stream.seek(size // 2)
            middle = stream.read(_SAMPLED_BYTES)
            stream.seek(-_SAMPLED_BYTES, 2)
            ends = head + middle + stream.read()
        parts.append(f"{file.name} {size} {hash_text(ends.hex())}")
    return hash_text("\n".join(parts))


class _Planner:
    """Walks through a configuration once; remembers the hashes of the stages it has passed."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._hashes: dict[str, str] = {}
        self._number = 0
        self._common = {
            "version": __version__,
            "seed": config.run.seed,
            # What a later version adds must not change the hash of runs that do without it.
            "model": config.model.model_dump(mode="json", exclude_defaults=True),
            "weights": model_identity(config.model.path),
            "template": config.template.model_dump(mode="json"),
            "plugins": config.plugins,
        }

    def stages(self) -> Iterator[PlannedStage]:
        """All stages, in order."""
        config = self._config
        for stage in config.curate:
            if stage.weights is not None:
                yield from self._trained(stage.weights)
            yield self._curation(stage)
        if config.eval is not None and config.eval.include_base:
            yield self._eval(BASE)
        for variant in config.variants:
            yield from self._trained(variant)
            if config.eval is not None:
                yield self._eval(variant)
        yield self._planned(REPORT, ("report", REPORT, None), {}, tuple(self._hashes))

    def _curation(self, stage: StageConfig) -> PlannedStage:
        # What is new in a stage's settings must not change the hash of runs that do without it.
        without = {"weights"} if stage.weights is None else None
        settings = stage.model_dump(mode="json", exclude=without)
        trained = () if stage.weights is None else (train_name(stage.weights),)
        engine = self._engine() if stage.draws_text else {}
        return self._planned(
            stage.name,
            ("curate", stage.stage, None),
            {"stage": settings, "files": files_named(settings), **engine},
            (*stage.inputs(), *trained),
        )

    def _trained(self, name: str) -> Iterator[PlannedStage]:
        """The training of a variant and of those it starts from, unless planned before."""
        if train_name(name) in self._hashes:
            return
        variant = self._config.variants[name]
        if variant.start is not None:
            yield from self._trained(variant.start)
        yield self._train(name, variant)

    def _train(self, name: str, variant: VariantConfig) -> PlannedStage:
        config = self._config
        # Layout and packing do not change the loss: a training goes on, or is done, under others.
        without = {"checkpoint", "parallel", "batch"}
        described: dict[str, object] = {
            "train": config.train_of(name).model_dump(mode="json", exclude=without),
            "method": variant.method.model_dump(mode="json"),
        }
        if variant.seed is not None:
            described["seed"] = variant.seed
        inputs = [] if variant.table is None else [variant.table]
        if variant.start is not None:
            inputs.append(train_name(variant.start))
        if (rollout := config.rollout_of(name)) is not None:
            described["rollout"] = rollout.decisive()
            described |= self._engine()
            inputs.append(rollout.problems)
            if rollout.monitor is not None:
                inputs.append(rollout.monitor.table)
        return self._planned(
            train_name(name), ("train", "train", name), described, tuple(dict.fromkeys(inputs))
        )

    def _eval(self, variant: str) -> PlannedStage:
        config = self._config
        assert config.eval is not None, "planned only where there is a section 'eval'"
        settings = config.eval.model_dump(mode="json", exclude={"include_base"})
        table = () if config.eval.table is None else (config.eval.table,)
        model = () if variant == BASE else (train_name(variant),)
        return self._planned(
            eval_name(variant),
            ("eval", "eval", variant),
            {"eval": settings, **self._engine()},
            (*table, *model),
        )

    def _engine(self) -> dict[str, object]:
        engine = self._config.engine
        return {"engine": engine.name, "max_model_len": engine.max_model_len}

    def _planned(
        self,
        name: str,
        what: tuple[Kind, str, str | None],
        settings: Mapping[str, object],
        inputs: tuple[str, ...],
    ) -> PlannedStage:
        upstream = {before: self._hashes[before] for before in inputs}
        described = {"kind": what, "settings": settings, "upstream": upstream, **self._common}
        digest = hash_text(json.dumps(described, sort_keys=True, default=str))
        self._hashes[name] = digest
        self._number += 10
        kind, stage, variant = what
        folder = REPORT if kind == "report" else f"{self._number}-{name}"
        return PlannedStage(folder, name, kind, stage, variant, digest, inputs)


def files_named(value: object) -> dict[str, str]:
    """Content hash of every file or model folder that a stage's settings name."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return {name: digest for item in value for name, digest in files_named(item).items()}
    if not isinstance(value, str) or not value or "\0" in value:
        return {}
    path = Path(value)
    # Prompts are texts, too: what no file can be called, no system is asked about.
    if len(value) > _LONGEST_PATH or any(len(p.encode()) > _LONGEST_NAME for p in path.parts):
        return {}
    if path.is_file():
        return {value: hash_file(path)}
    # A bare word names a stage, a rule or a role, even where a folder happens to be called so.
    return {value: model_identity(value)} if path.is_dir() and len(path.parts) > 1 else {}


def check_layouts(config: RunConfig) -> None:
    """Refuse layouts that the model's sizes do not allow, where the model is a local folder.

    Raises:
        TopologyError: heads, KV groups, the MLP or the layers cannot be split as asked.
    """
    folder = Path(config.model.path)
    if not folder.is_dir():
        folder = config.run.model_cache / config.model.path
    if (folder / "config.json").is_file():
        check_layouts_of(config, folder)


def check_layouts_of(config: RunConfig, model_folder: Path) -> None:
    """Refuse layouts that the sizes of the model in `model_folder` do not allow.

    Raises:
        TopologyError: heads, KV groups, the MLP or the layers cannot be split as asked.
    """
    hf_config, architecture = read_architecture(model_folder)
    for settings in config.curate:
        stage = build_stage(settings)
        if stage.runs_on == "ranks":
            check_topology(hf_config, architecture, stage.parallel())
    for variant in config.variants:
        check_topology(hf_config, architecture, config.train_of(variant).parallel)
