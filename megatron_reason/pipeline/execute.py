"""Runs a plan: skips what is done, runs the rest here or on worker processes, stage by stage.

A stage's folder holds `hash` from its start on and `stage.json` from its end on. An interrupted
stage goes on from what its folder holds, as long as the hash is still the planned one. Not here:
what each kind of stage does (`stages.py`).
"""

import os
import platform
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from megatron_reason.errors import ConfigError, LaunchError
from megatron_reason.files import STAGE_MANIFEST, write_json, write_text
from megatron_reason.launch.signals import interruptible
from megatron_reason.logs import get_logger
from megatron_reason.models.sources import resolve_model
from megatron_reason.pipeline.begun import begin, begun_as
from megatron_reason.pipeline.keeper import EngineKeeper
from megatron_reason.pipeline.lock import stage_locks
from megatron_reason.pipeline.manifest import (
    Manifest,
    fingerprints,
    installed_versions,
    is_done,
    now,
    write_manifest,
)
from megatron_reason.pipeline.measure import problem_sets
from megatron_reason.pipeline.plan import (
    PlannedStage,
    check_layouts_of,
    find_stage,
    make_plan,
    write_plan,
)
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.pipeline.side_by_side import run_side_by_side
from megatron_reason.pipeline.stages import Setting, run_stage
from megatron_reason.platform import distributed_backend, limit_threads

_LOG = get_logger(__name__)


def execute(
    config: RunConfig,
    *,
    from_: str | None = None,
    to: str | None = None,
    only: str | None = None,
    run_folder: Path | None = None,
) -> Path:
    """Run the stages of `config` that are not done yet.

    Args:
        config: the run.
        from_: first stage to run; those before it must be done.
        to: last stage to run.
        only: the one stage to run.
        run_folder: folder of the run; None takes the one the config names.

    Returns:
        The run folder.

    Raises:
        ConfigError: no such stage, or `only` together with the other two.
        DataError: benchmarks whose files are missing or wrong, before anything is done.
        LaunchError: another process works on one of the stages, a stage whose inputs are not done,
            or worker processes that did not end well.
        ReasonError: whatever a stage cannot go on with.
    """
    folder = run_folder or config.run.folder
    plan = make_plan(config)
    chosen = choose(plan, from_=from_, to=to, only=only)
    with stage_locks(folder, [stage.name for stage in chosen]):
        _write_papers(folder, config, plan)
        model_folder = resolve_model(
            config.model.path, config.run.model_cache, random_weights=config.model.random_weights
        )
        check_layouts_of(config, model_folder)
        _adopt_folders(folder, plan)
        _check_benchmarks(config, folder, chosen)
        started_s = time.monotonic()
        if config.launch.stages_at_once > 1:
            _run_side_by_side(chosen, config, folder, model_folder)
        else:
            _run_stages(chosen, config, folder, model_folder)
        _LOG.info(
            "%d of %d stages are done, %.0f s; %s",
            sum(is_done(folder / stage.folder, stage.hash) for stage in plan),
            len(plan), time.monotonic() - started_s, folder,
        )  # fmt: skip
    return folder


def _run_stages(
    chosen: Sequence[PlannedStage], config: RunConfig, folder: Path, model_folder: Path
) -> None:
    with EngineKeeper(
        config.engine, dtype=config.model.dtype, log_folder=folder / "logs"
    ) as keeper:
        setting = Setting(config, folder, model_folder, make_plan(config), keeper)
        for stage in chosen:
            with interruptible(f"stage '{stage.name}'"):
                _run_unless_done(stage, setting)


def _run_side_by_side(
    chosen: Sequence[PlannedStage], config: RunConfig, folder: Path, model_folder: Path
) -> None:
    if distributed_backend() == "nccl":
        raise ConfigError(
            "launch.stages_at_once",
            f"{config.launch.stages_at_once} stages would share the GPUs of this machine, all of "
            "which a training takes.",
            "Set it to 1; on a cluster variants train side by side: mreason run CONFIG --on NAME.",
        )
    run_side_by_side(
        {stage.name: stage.inputs for stage in chosen},
        partial(_run_alone, config=config, folder=folder, model_folder=model_folder),
        at_once=config.launch.stages_at_once,
    )


def _run_alone(name: str, *, config: RunConfig, folder: Path, model_folder: Path) -> None:
    """One stage, in a process that may have done others before."""
    limit_threads(config.launch.threads_per_process)
    plan = make_plan(config)
    _run_stages([plan[find_stage(plan, name, "--only")]], config, folder, model_folder)


def choose(
    plan: list[PlannedStage],
    *,
    from_: str | None = None,
    to: str | None = None,
    only: str | None = None,
) -> list[PlannedStage]:
    """Stages of the plan that are asked for.

    Raises:
        ConfigError: no such stage, an empty range, or `only` together with the other two.
    """
    if only is not None:
        if from_ is not None or to is not None:
            raise ConfigError(
                "--only", f"stage '{only}' alone and a range of stages.", "Give one of the two."
            )
        return [plan[find_stage(plan, only, "--only")]]
    first = 0 if from_ is None else find_stage(plan, from_, "--from")
    last = len(plan) - 1 if to is None else find_stage(plan, to, "--to")
    if first > last:
        raise ConfigError(
            "--from, --to", f"'{from_}' comes after '{to}' in the plan.", "Swap the two."
        )
    return plan[first : last + 1]


def _write_papers(folder: Path, config: RunConfig, plan: list[PlannedStage]) -> None:
    """What a reader of the run folder needs to know about how it came to be."""
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)
    write_text(folder / "config.yaml", settings)
    write_text(folder / "command.txt", shlex.join(sys.argv) + "\n")
    write_plan(folder, plan)
    write_json(
        folder / "environment.json",
        {
            "versions": installed_versions(),
            "platform": platform.platform(),
            "host": socket.gethostname(),
            "cpus": os.cpu_count(),
            "python": sys.executable,
            "started_at": now(),
        },
    )


def _adopt_folders(folder: Path, plan: Sequence[PlannedStage]) -> None:
    """Rename the folders of stages whose number changed because stages came or went before them."""
    for stage in plan:
        target = folder / stage.folder
        found = [
            path
            for path in folder.glob(f"*-{stage.name}")
            if path.is_dir() and path.name.removesuffix(f"-{stage.name}").isdecimal()
        ]
        if found and not target.exists():
            newest = max(found, key=lambda path: path.stat().st_mtime)
            newest.rename(target)


def _check_benchmarks(config: RunConfig, folder: Path, chosen: Sequence[PlannedStage]) -> None:
    """Read what models will be asked: a missing file must not be found after a training."""
    evals = [stage for stage in chosen if stage.kind == "eval"]
    if config.eval is not None and not all(is_done(folder / s.folder, s.hash) for s in evals):
        problem_sets(config.eval, None)


def _run_unless_done(stage: PlannedStage, setting: Setting) -> None:
    folder = setting.folder_of(stage)
    if is_done(folder, stage.hash):
        _LOG.info("%s: done before", stage.folder)
        return
    for name in stage.inputs:
        before = setting.stage(name)
        if not is_done(setting.folder_of(before), before.hash):
            raise LaunchError(
                f"stage '{stage.name}'",
                f"it reads '{name}', which is not done, or was made with other settings.",
                f"Run that first: leave --only and --from out, or give --from {name}.",
            )
    _prepare(folder, stage)
    _LOG.info("%s: begins", stage.folder)
    started_s = time.monotonic()
    result = run_stage(stage, setting)
    seconds = time.monotonic() - started_s
    write_manifest(
        folder,
        Manifest(
            name=stage.name,
            kind=stage.kind,
            hash=stage.hash,
            inputs={name: setting.stage(name).hash for name in stage.inputs},
            num_rows=result.num_rows,
            counts=dict(result.counts),
            seconds=round(seconds, 3),
            versions=installed_versions(),
            finished_at=now(),
            config=_curation_of(stage.name, setting),
            outputs=fingerprints(folder),
        ),
    )
    _LOG.info("%s: %d rows in %.1f s", stage.folder, result.num_rows, seconds)


def _curation_of(name: str, setting: Setting) -> dict[str, Any]:
    """Configuration of a curation stage, for its manifest; empty for other stages."""
    found = (stage for stage in setting.config.curate if stage.name == name)
    return next((stage.model_dump(mode="json") for stage in found), {})


def _prepare(folder: Path, stage: PlannedStage) -> None:
    """Make the folder; keep what is in it only if this very stage can go on with it.

    Answers are never removed: an evaluation moves those aside that it cannot use.
    """
    is_same = begun_as(folder) == stage.hash
    if stage.kind == "eval":
        (folder / STAGE_MANIFEST).unlink(missing_ok=True)
    elif folder.exists() and not (is_same and stage.kind in ("train", "curate")):
        shutil.rmtree(folder)
    begin(folder, stage.hash)
