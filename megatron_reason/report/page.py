"""One self-contained HTML page about one run or several, and its markdown twin.

Reads the run folder alone; the page loads nothing from anywhere. Not here: drawing (`figures.py`,
`charts.py`), reading (`run_data.py`), the headline table (`table.py`), the answers shown
(`examples.py`) and the page's looks (`page.html.j2`, `chart.js.j2`).
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from megatron_reason import __version__
from megatron_reason.files import atomic_path, read_json, write_json, write_text
from megatron_reason.report.analysis import Plot
from megatron_reason.report.charts import Chart, pass_chart, training_chart
from megatron_reason.report.drawing import Figure
from megatron_reason.report.examples import examples
from megatron_reason.report.figures import (
    accuracy_and_entropy,
    as_png,
    distributions,
    lengths_by_verdict,
    pass_at_k_curves,
    training_curve,
)
from megatron_reason.report.numbers import (
    length_numbers,
    metric_numbers,
    selection_numbers,
    training_numbers,
)
from megatron_reason.report.repeats import gathered
from megatron_reason.report.run_data import CONFIG, ENVIRONMENT, RunData, read_run
from megatron_reason.report.side_by_side import read_runs
from megatron_reason.report.table import headline_of, headline_table

__all__ = ["build_comparison", "build_report", "headline_table"]

PAGE = "index.html"
TABLE = "table.md"
TRAININGS = "trainings.md"
"""The same with a row for each training, where variants have several seeds."""
FIGURES = "report_figures.json"
"""Names of the figures that the last report drew, so that the next removes these and no others."""
_TEMPLATE = "page.html.j2"
_SCRIPT = "chart.js.j2"
_PAPERS = {"Configuration": CONFIG, "Environment": ENVIRONMENT}


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    name: str
    """Of its PNG, without ending."""
    caption: str
    """What it shows and how to read it."""
    source: str
    """The PNG as a data URI."""
    chart: Markup | None
    """JSON for the page's script."""


@dataclass(frozen=True)
class Section:
    """Pictures under one heading."""

    title: str
    pictures: list[Picture]
    absence: str
    """Said in their place when there are none."""


def build_report(run: Path) -> Path:
    """Write `report/index.html`, `report/table.md`, and each figure as PNG and as CSV.

    Figures of an earlier report that this one does not draw are removed, and nothing else is. Where
    variants have several seeds, `report/trainings.md` has a row for each.

    What is missing or illegible is said on the page.

    Returns:
        Path of the page.

    Raises:
        DataError: `run` is no run folder.
    """
    papers = {title: _text(run / name) for title, name in _PAPERS.items()}
    apart, folder = read_run(run), run / "report"
    data = gathered(apart)
    if data.seeds:
        write_text(folder / TRAININGS, headline_of(apart).markdown())
    return _write(data, run.resolve().name, folder, papers)


def build_comparison(runs: Sequence[Path], folder: Path, *, force: bool = False) -> Path:
    """Write one page about several runs, with its table and figures, into `folder`.

    Args:
        runs: folders of runs.
        folder: where the page goes.
        force: see `read_runs`.

    Raises:
        DataError: see `read_runs`.
    """
    data = read_runs(runs, force=force)
    names = [run.resolve().name for run in runs]
    papers = {
        f"{title} of {name}": _text(run / file)
        for run, name in zip(runs, names, strict=True)
        for title, file in _PAPERS.items()
    }
    return _write(data, " and ".join(names), folder, papers)


def _write(data: RunData, name: str, folder: Path, papers: Mapping[str, str]) -> Path:
    headline = headline_of(data)
    sections = [_section(section, folder) for section in _sections(data)]
    _keep_only(folder, {picture.name for part in sections for picture in part.pictures})
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    sets = data.problem_sets
    page = environment.from_string(_resource(_TEMPLATE)).render(
        name=name,
        minutes=sum(stage.seconds for stage in data.stages) / 60,
        version=__version__,
        model=(data.settings.get("model") or {}).get("path", ""),
        data=data,
        stages=[stage for stage in data.stages if stage.kind != "report"],
        incomparable=data.incomparable(),
        tables={name: headline.on(name) for name in headline.problem_sets},
        sections=sections,
        examples={name: examples(data.on(name)) for name in sets},
        papers=papers,
        script=Markup(_resource(_SCRIPT)),
    )
    write_text(folder / PAGE, page)
    write_text(folder / TABLE, headline.markdown())
    return folder / PAGE


def _keep_only(folder: Path, drawn: set[str]) -> None:
    """Remove what an earlier report drew and this one did not; all else in the folder stays."""
    record = folder / FIGURES
    earlier: list[str] = read_json(record) if record.is_file() else []
    for name in set(earlier) - drawn:
        for ending in ("png", "csv"):
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
    write_json(record, sorted(drawn))


def _resource(name: str) -> str:
    return files("megatron_reason.report").joinpath(name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Plot(Plot):
    """A figure before it is encoded."""

    chart: Chart | None = None
    """The same as data for the page's script."""


@dataclass(frozen=True)
class _Drawn:
    """A section before its figures are encoded."""

    title: str
    plots: Iterable[_Plot]
    absence: str


def _sections(data: RunData) -> Iterator[_Drawn]:
    yield _Drawn("Answers", _answered(data), "No model has been evaluated yet.")
    yield _Drawn(
        "What was selected",
        _selected(data),
        "No selection has been made yet, or none of its responses has a perplexity.",
    )
    yield _Drawn("Training", _trained(data), "No variant has been trained yet.")


def _answered(data: RunData) -> Iterator[_Plot]:
    for index, name in enumerate(data.problem_sets):
        summaries = {m.model: m.summary for m in data.on(name)}
        answers = {m.model: m.answers for m in data.on(name)}
        yield _Plot(
            _numbered("pass_at_k", index),
            "Share of problems solved by at least one of k answers (unbiased estimate): higher is "
            "better, and where two 95 % bands overlap much this run does not tell the models "
            "apart.",
            pass_at_k_curves(summaries, name, data.models),
            metric_numbers(summaries, "pass@*"),
            pass_chart(summaries, name, data.models),
        )
        yield _Plot(
            _numbered("entropy", index),
            "Crosses span 95 % intervals: up is more accurate, and a model far to the left of the "
            "base model has lost alternatives to try.",
            accuracy_and_entropy(summaries, name, data.models),
            metric_numbers(summaries, "pass@1", "mean_entropy"),
        )
        yield _Plot(
            _numbered("lengths", index),
            "Boxes hold the middle half of the answers, whiskers reach from 5 to 95 %, the white "
            "line is the median: other answers that pile up at the limit were cut off.",
            lengths_by_verdict(answers, name),
            length_numbers(answers),
        )


def _selected(data: RunData) -> Iterator[_Plot]:
    pools = dict.fromkeys(selection.pool for selection in data.selections)
    for index, pool in enumerate(pools):
        selections = [s for s in data.selections if s.pool == pool]
        kind = "errors to suppress" if selections[0].role == "negative" else "truths to imitate"
        yield _Plot(
            _numbered("perplexity", index),
            f"Perplexity of {kind}, candidates grey and behind each selection (strips to their own "
            "height, triangle: median, dashed: distribution aimed at, last bin: all beyond): "
            "further right is less likely under the base model.",
            distributions(selections, "ppl", data.models),
            selection_numbers(selections, "ppl"),
        )
        yield _Plot(
            _numbered("tokens", index),
            "The same responses by length: a strip that leaves the grey behind it shows that "
            "selecting by perplexity also selected by length.",
            distributions(selections, "num_tokens", data.models),
            selection_numbers(selections, "num_tokens"),
        )


_KNOWN = {
    "train/loss": (
        "loss",
        "What was minimised, the weighted sum of its parts: each line should fall, but lines of "
        "different tables start at different heights and do not compare.",
    ),
    "train/ce": (
        "cross-entropy (nats per token)",
        "The part of the loss on imitated responses: it falls as the model learns them.",
    ),
    "train/ul": (
        "unlikelihood (nats per token)",
        "The part of the loss on suppressed errors, before its weight: it falls as the model stops "
        "believing them.",
    ),
    "train/entropy_demo": (
        "entropy, imitated tokens (nats)",
        "How undecided the model is on the responses it imitates: a fall towards zero leaves "
        "little to explore for reinforcement learning.",
    ),
    "train/entropy_negative": (
        "entropy, suppressed tokens (nats)",
        "How undecided the model is on the errors it suppresses: it should hold or rise as "
        "confidence is taken away.",
    ),
    "reward/mean": (
        "reward of the rollouts",
        "What the policy's own answers earn on the problems it learns from: it rises, or nothing "
        "is learnt.",
    ),
    "train/entropy_rollout": (
        "entropy, own answers (nats)",
        "How undecided the policy is on its own answers: a fall to near 0 ends exploration.",
    ),
    "train/lr": ("learning rate", "Warm-up and decay, as they were applied to each update."),
    "train/grad_norm": (
        "gradient norm",
        "Norm before clipping: spikes here are updates that clipping has cut.",
    ),
}
_LAST = ("train/lr", "train/grad_norm")
_NOT_DRAWN = frozenset({"train/nonfinite_skipped", "train/entropy"})
"""The entropy is drawn by role."""
_MONITORED = re.compile(r"eval/[^/]+/pass@1")


def _trained(data: RunData) -> Iterator[_Plot]:
    """Loss, its parts, entropy by role, rate, norm: whatever the methods logged."""
    logged = {name for frame in data.training.values() for name in frame.columns}
    metrics = {
        name
        for name in logged - _NOT_DRAWN
        if name.startswith("train/") or name in _KNOWN or _MONITORED.fullmatch(name)
    }
    known = [name for name in _KNOWN if name in metrics and name not in _LAST]
    others = sorted(metrics - _KNOWN.keys())
    for metric in [*known, *others, *(name for name in _LAST if name in metrics)]:
        name = metric.removeprefix("train/")
        title, caption = _KNOWN.get(metric, (name, f"{name}, as the method logged it."))
        figure = training_curve(data.training, metric, title, data.models)
        numbers = training_numbers(data.training, metric)
        chart = training_chart(data.training, metric, title, data.models)
        yield _Plot(metric.replace("/", "_"), caption, figure, numbers, chart)


def _numbered(name: str, index: int) -> str:
    return name if index == 0 else f"{name}_{index + 1}"


def _section(drawn: _Drawn, folder: Path) -> Section:
    pictures = [
        _saved(plot, plot.figure, folder) for plot in drawn.plots if plot.figure is not None
    ]
    return Section(drawn.title, pictures, drawn.absence)


def _saved(plot: _Plot, figure: Figure, folder: Path) -> Picture:
    png = as_png(figure)
    with atomic_path(folder / f"{plot.name}.png") as path:
        path.write_bytes(png)
    with atomic_path(folder / f"{plot.name}.csv") as path:
        plot.numbers.write_csv(path)
    encoded = base64.b64encode(png).decode()
    chart = None
    if plot.chart is not None:
        # No text of it can end the element that holds it.
        chart = Markup(json.dumps(asdict(plot.chart)).replace("<", "\\u003c"))
    return Picture(plot.name, plot.caption, f"data:image/png;base64,{encoded}", chart)


def _text(path: Path) -> str:
    if not path.is_file():
        return f"There is no {path.name}."
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return yaml.safe_dump(json.loads(text), sort_keys=False) if path.suffix == ".json" else text
    except ValueError:
        return text
