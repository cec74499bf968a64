"""One self-contained HTML page per run, its markdown twin, and the headline table.

Reads the run folder alone and loads nothing from a network. Not here: drawing (`figures.py`) and
reading (`run_data.py`).
"""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment
from matplotlib.figure import Figure

from megatron_reason import __version__
from megatron_reason.evaluation.estimators import Estimate
from megatron_reason.files import atomic_path, read_json, write_text
from megatron_reason.report import figures
from megatron_reason.report.run_data import RunData, Variant

_NUM_EXAMPLES = 4
_COLUMNS = (
    ("mean entropy (nats)", "mean_entropy", 3),
    ("mean length (tokens)", "mean_length", 1),
    ("truncated", "truncated_fraction", 3),
    ("no answer", "no_answer_fraction", 3),
)


@dataclass(frozen=True)
class HeadlineTable:
    """The table the papers print: one row per model, each number with its 95 % interval."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table as markdown."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


@dataclass(frozen=True)
class _Picture:
    """A figure on the page."""

    name: str
    title: str
    caption: str
    source: str
    """PNG as a data URI."""


def headline_table(run: Path) -> HeadlineTable:
    """Headline table of the run in `run`; models that were not evaluated have dashes.

    Raises:
        DataError: `run` is no run folder.
    """
    return _headline(RunData.read(run).variants)


def build_report(run: Path) -> Path:
    """Write `report/index.html`, `report/table.md` and the PNGs of the run in `run`.

    Returns:
        Path of the page.

    Raises:
        DataError: `run` is no run folder.
    """
    data = RunData.read(run)
    folder = run / "report"
    table = _headline(data.variants)
    pictures = [_saved(name, *rest, folder) for name, *rest in _drawn(data)]
    template = files("megatron_reason.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    write_text(
        folder / "index.html",
        page.render(
            name=run.name,
            version=__version__,
            table=table,
            pictures=pictures,
            stages=[_stage_row(stage) for stage in data.stages],
            missing=[stage.name for stage in data.stages if stage.manifest is None
                     and stage.kind != "report"],
            examples=[(v.name, _examples(v)) for v in data.variants if v.generations is not None],
            config=_text(run / "config.yaml"),
            environment=_text(run / "environment.json"),
        ),
    )  # fmt: skip
    write_text(folder / "table.md", table.markdown())
    return folder / "index.html"


def _headline(variants: Sequence[Variant]) -> HeadlineTable:
    largest = max((k for v in variants for k in _ks(v)), default=1)
    passes = [("pass@1", "pass@1", 3)]
    if largest > 1:
        passes.append((f"pass@{largest}", f"pass@{largest}", 3))
    columns = [*passes, *_COLUMNS]
    header = ("model", *(title for title, _, _ in columns), "problems x samples")
    rows = [
        (v.name, *(_cell(v.summary.get(key), digits) for _, key, digits in columns), _size(v))
        for v in variants
    ]
    return HeadlineTable(header, tuple(rows))


def _ks(variant: Variant) -> list[int]:
    return [int(key.removeprefix("pass@")) for key in variant.summary if key.startswith("pass@")]


def _cell(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return "-"
    value, low, high = (f"{x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _size(variant: Variant) -> str:
    if variant.generations is None or not variant.num_problems:
        return "-"
    return f"{variant.num_problems} x {len(variant.generations) // variant.num_problems}"


def _drawn(data: RunData) -> list[tuple[str, str, str, Figure]]:
    """(name, title, caption, figure) of everything there is to draw."""
    plans: list[tuple[str, str, str, Callable[[], Figure | None]]] = [
        ("selection", "What was selected",
         "Grey: all correct responses that were scored. Lines: what each selection took of them. "
         "OXA takes correct responses the base model finds unlikely, so its line should lie to "
         "the right of the low-perplexity one.",
         lambda: figures.selection_distributions(*_selection(data))),
        ("loss", "Loss by part",
         "Mean over the sequences of each update. Losses of different tables are not comparable "
         "with each other; each should fall along its own line.",
         lambda: figures.loss_curves(data.variants)),
        ("entropy", "Entropy while training",
         "Full-vocabulary entropy of the model on the tokens it is trained on. A curve that falls "
         "to nothing leaves little for reinforcement learning to explore.",
         lambda: figures.entropy_curves(data.variants)),
        ("pass_at_k", "pass@k on held-out problems",
         "Probability that at least one of k answers is right, unbiased; bands are 95 % intervals "
         "over problems. Where bands overlap, this run does not tell the models apart.",
         lambda: figures.pass_at_k_curves(data.variants)),
        ("lengths", "Length of right and wrong answers",
         "Tokens per answer, stop token included; n is the number of answers.",
         lambda: figures.lengths_by_verdict(data.variants)),
        ("optimizer", "Learning rate and gradient norm",
         "The norm is taken before clipping; spikes that clipping hides show here.",
         lambda: figures.optimizer_curves(data.variants)),
    ]  # fmt: skip
    drawn = [(name, title, caption, draw()) for name, title, caption, draw in plans]
    return [(n, t, c, figure) for n, t, c, figure in drawn if figure is not None]


def _selection(
    data: RunData,
) -> tuple[pl.DataFrame, Mapping[str, pl.DataFrame], Mapping[str, Any] | None]:
    """Scored candidates, what each selection of truths took, and the Gaussian's target."""
    pool = pl.DataFrame(schema={"ppl": pl.Float64, "num_tokens": pl.Int64})
    taken: dict[str, pl.DataFrame] = {}
    target: Mapping[str, Any] | None = None
    for stage, frame in data.samples():
        if stage.stage == "score" and pool.is_empty():
            pool = frame
        if stage.stage == "select":
            taken[stage.name] = frame
            details = read_json(stage.folder / "selection.json")
            if details["rule"]["name"] == "gaussian":
                target = details
    return pool, taken, target


def _saved(name: str, title: str, caption: str, figure: Figure, folder: Path) -> _Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    with atomic_path(folder / f"{name}.png") as path:
        path.write_bytes(buffer.getvalue())
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return _Picture(name, title, caption, f"data:image/png;base64,{encoded}")


def _stage_row(stage: Any) -> dict[str, str]:  # noqa: ANN401 - a StageRecord
    if stage.manifest is None:
        return {"name": stage.folder.name, "kind": stage.stage or stage.kind, "rows": "not done",
                "seconds": "", "counts": "", "refused": ""}  # fmt: skip
    counts = {key: value for key, value in stage.manifest["counts"].items() if value}
    return {
        "name": stage.folder.name,
        "kind": stage.stage or stage.kind,
        "rows": str(stage.manifest["num_rows"]),
        "seconds": f"{stage.manifest['seconds']:.1f}",
        "counts": ", ".join(f"{key} {value}" for key, value in counts.items()),
        "refused": ", ".join(f"{key}: {value}" for key, value in stage.refused.items()),
    }


def _examples(variant: Variant) -> list[dict[str, Any]]:
    """A few answers, right and wrong ones in turn, the same problems for every variant."""
    assert variant.generations is not None, "only answered variants have examples"
    first = variant.generations.filter(pl.col("sample_index") == 0).sort("problem_id")
    right = first.filter(pl.col("score") > 0).head(_NUM_EXAMPLES // 2)
    wrong = first.filter(pl.col("score") <= 0).head(_NUM_EXAMPLES - len(right))
    return pl.concat([right, wrong]).to_dicts()


def _text(path: Path) -> str:
    if not path.is_file():
        return "not there"
    text = path.read_text(encoding="utf-8")
    return json.dumps(json.loads(text), indent=2) if path.suffix == ".json" else text
