"""pass@1 side by side: on each set of problems and on average over benchmarks, a bar per model.

Sources: OXA (arXiv 2603.16206) Figures 4, 5 and 6, SRFT (arXiv 2506.19767) Figure 5 and Table A1,
whose groups are other base models, amounts of data, methods or intervals of perplexity: whatever
the inputs are labelled. Not here: the mean (`evaluation/average.py`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from megatron_reason.evaluation.average import METRIC, average
from megatron_reason.evaluation.summary import EvalSummary, read_summary
from megatron_reason.report.analysis import Plot, analysis
from megatron_reason.report.drawing import INK, WIDTH_IN, Figure, legend_below, looks, styled
from megatron_reason.report.places import HELD_OUT, evaluations

_MEAN = "mean"
_BARS_PER_INCH = 7.0
_GROUP_WIDTH = 0.8
_HATCHES = ("", "//", "xx", "..")
"""Of bars whose colour has been used before."""

Measured = Mapping[str, Mapping[str, EvalSummary]]
"""Summaries by set of problems, and there by model."""


def with_means(found: Measured) -> Measured:
    """The same with the mean over benchmarks behind them, of models measured on all of several."""
    benchmarks = [name for name in found if name != HELD_OUT]
    if len(benchmarks) < 2:
        return found
    shared = [label for label in found[benchmarks[0]] if all(label in found[b] for b in benchmarks)]
    means = {label: average({b: found[b][label] for b in benchmarks}) for label in shared}
    return {**found, _MEAN: means} if means else found


@styled
def accuracy_bars(found: Measured) -> Figure | None:
    """A group of bars per set of problems, whiskers span 95 % intervals."""
    labels = list(dict.fromkeys(label for models in found.values() for label in models))
    if not labels:
        return None
    look = looks(labels)
    width_in = max(WIDTH_IN, len(labels) * len(found) / _BARS_PER_INCH + 1)
    figure = Figure(figsize=(width_in, 3.8))
    ax = figure.subplots()
    width = _GROUP_WIDTH / len(labels)
    times_used = Counter[str]()
    for place, label in enumerate(labels):
        color = look[label].color
        hatch = _HATCHES[times_used[color] % len(_HATCHES)]
        times_used[color] += 1
        shift = (place + 0.5) * width - _GROUP_WIDTH / 2
        for x, models in enumerate(found.values()):
            if label in models:
                one = models[label].metrics[METRIC]
                ax.bar(
                    x + shift, 100 * one.value, 0.9 * width, color=color, hatch=hatch,
                    edgecolor="white",
                )  # fmt: skip
                ax.vlines(x + shift, 100 * one.low, 100 * one.high, color=INK, linewidth=1.1)
        ax.bar(0, 0, color=color, hatch=hatch, edgecolor="white", label=label)
    ax.set_xticks(range(len(found)), list(found))
    ax.grid(visible=False, axis="x")
    ax.set_title("pass@1 (%)")
    legend_below(figure)
    return figure


@analysis("accuracy", takes="evaluations")
def draw(inputs: Sequence[str]) -> Iterator[Plot]:
    """pass@1 on each benchmark and on average, a bar per model (OXA 4 to 6, SRFT 5)."""
    found = with_means(
        {
            problem_set: {label: read_summary(folder) for label, folder in folders.items()}
            for problem_set, folders in evaluations(inputs).items()
        }
    )
    rows = [
        {"problem_set": problem_set, "model": label, METRIC: one.value, "low": one.low,
         "high": one.high, "n": one.n}
        for problem_set, models in found.items()
        for label, summary in models.items()
        for one in [summary.metrics[METRIC]]
    ]  # fmt: skip
    yield Plot(
        "accuracy",
        "Mean pass@1 over the problems of each set, and the unweighted mean over benchmarks where "
        "there are several; whiskers span 95 % intervals.",
        accuracy_bars(found),
        pl.DataFrame(rows),
    )
