"""Tables -> figures, as pure functions.

Every figure is one panel, sized to be read at the width of a phone; pages put panels side by side
where there is room. Functions return None when there is nothing to draw. Not here: how things look
(`drawing.py`), files and pages (`page.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megatron_reason.evaluation.summary import EvalSummary, powers_of_two
from megatron_reason.report.drawing import (
    INK,
    RIGHT,
    SOFT,
    WIDTH_IN,
    WRONG,
    Axes,
    Figure,
    LogLocator,
    MaxNLocator,
    ScalarFormatter,
    as_png,
    legend_below,
    looks,
    styled,
)
from megatron_reason.report.numbers import bin_edges
from megatron_reason.report.run_data import Selection
from megatron_reason.schema.records import Status

__all__ = [
    "Figure",
    "accuracy_and_entropy",
    "as_png",
    "distributions",
    "lengths_by_verdict",
    "looks",
    "pass_at_k_curves",
    "training_curve",
]

_POOL = "#C9CED6"
_FEW_POINTS, _MANY_POINTS = 30, 80
_SMALL = 0.01
_MARGIN = 0.08
_WIDE = 4
"""From this ratio of entropies on their axis is logarithmic."""


@styled
def distributions(
    selections: Sequence[Selection], column: str, models: Sequence[str]
) -> Figure | None:
    """A strip for the candidates and for each selection of them, on one axis (OXA, Figure 2a).

    Each strip is a histogram scaled to its own height, a triangle at its median; what lies beyond
    the axis is counted in the last bin. The candidates are shaded behind each selection, and the
    distribution that it aimed at is drawn over it if the column is `ppl`.

    Args:
        selections: what was selected, all from one pool.
        column: `ppl` or `num_tokens`.
        models: all models of the run, for their colours.
    """
    strips = _strips(selections, models)
    if not strips:
        return None
    edges = bin_edges(selections, column)
    figure = Figure(figsize=(WIDTH_IN, 0.6 + 0.72 * len(strips)))
    axes: list[Axes] = list(figure.subplots(len(strips), 1, sharex=True, squeeze=False)[:, 0])
    for ax, strip in zip(axes, strips, strict=True):
        _draw_strip(ax, strip, column, edges)
    axes[-1].set_xlabel("perplexity under the base model" if column == "ppl" else "response tokens")
    axes[-1].spines["bottom"].set_visible(True)
    axes[-1].tick_params(axis="x", length=3)
    return figure


@styled
def training_curve(
    training: Mapping[str, pl.DataFrame], metric: str, title: str, models: Sequence[str]
) -> Figure | None:
    """One metric over the updates, a line per variant that has it.

    A long line is a running mean over a twentieth of it, the raw one faint behind it.

    Args:
        training: metrics of each variant, with a column `step`.
        metric: column to draw.
        title: what it is, with its unit.
        models: all models of the run, for their looks.
    """
    lines = {
        name: frame.select("step", metric).drop_nulls()
        for name, frame in training.items()
        if metric in frame.columns
    }
    lines = {name: line for name, line in lines.items() if not line.is_empty()}
    if not lines:
        return None
    look = looks(models)
    figure = Figure(figsize=(WIDTH_IN, 3.3))
    ax = figure.subplots()
    for name, line in lines.items():
        steps, values = line["step"].to_numpy(), line[metric].to_numpy().astype(float)
        if len(line) > _MANY_POINTS:
            ax.plot(steps, values, color=look[name].color, alpha=0.2, linewidth=0.8)
            steps, values = _smoothed(steps, values)
        ax.plot(
            steps, values, label=name, linewidth=1.8, markersize=4,
            color=look[name].color, linestyle=look[name].linestyle,
            marker=look[name].marker if len(line) <= _FEW_POINTS else None,
        )  # fmt: skip
    ax.set_title(title)
    ax.set_xlabel("update")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if max(abs(bound) for bound in ax.get_ylim()) < _SMALL:
        ax.yaxis.set_major_formatter("{x:.1e}")
    legend_below(figure)
    return figure


@styled
def pass_at_k_curves(
    summaries: Mapping[str, EvalSummary], title: str, models: Sequence[str]
) -> Figure | None:
    """pass@k against k, with interval bands, a line per model (OXA, Figure 3).

    Args:
        summaries: evaluation of each model.
        title: name of the problem set.
        models: all models of the run, for their looks.
    """
    if not summaries:
        return None
    look = looks(models)
    figure = Figure(figsize=(WIDTH_IN, 3.8))
    ax = figure.subplots()
    ticks: set[int] = set()
    for name, summary in summaries.items():
        points = sorted(
            (int(key.removeprefix("pass@")), e.value, e.low, e.high)
            for key, e in summary.metrics.items()
            if key.startswith("pass@")
        )
        ks, value, low, high = (
            np.array(numbers, dtype=float) for numbers in zip(*points, strict=True)
        )
        color = look[name].color
        ax.fill_between(ks, 100 * low, 100 * high, color=color, alpha=0.1, linewidth=0)
        marked = powers_of_two(int(ks[-1]))
        ax.plot(
            ks, 100 * value, color=color, label=name, linewidth=1.8, markersize=5,
            linestyle=look[name].linestyle, marker=look[name].marker,
            markevery=[place for place, k in enumerate(ks) if int(k) in marked],
        )  # fmt: skip
        ticks |= set(marked)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(ticks), [str(k) for k in sorted(ticks)])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.set_title(f"{title}: pass@k (%)")
    ax.set_xlabel("k")
    legend_below(figure)
    return figure


@styled
def accuracy_and_entropy(
    summaries: Mapping[str, EvalSummary], title: str, models: Sequence[str]
) -> Figure | None:
    """pass@1 against the entropy of the answers, both with intervals, a cross per model.

    Args:
        summaries: evaluation of each model; those without entropy are left out.
        title: name of the problem set.
        models: all models of the run, for their looks.
    """
    crosses = {
        name: (summary.metrics["mean_entropy"], summary.metrics["pass@1"])
        for name, summary in summaries.items()
        if summary.metrics.keys() >= {"mean_entropy", "pass@1"}
    }
    if not crosses:
        return None
    look = looks(models)
    figure = Figure(figsize=(WIDTH_IN, 3.8))
    ax = figure.subplots()
    for name, (x, y) in crosses.items():
        color = look[name].color
        ax.hlines(100 * y.value, x.low, x.high, color=color, linewidth=1.4)
        ax.vlines(x.value, 100 * y.low, 100 * y.high, color=color, linewidth=1.4)
        ax.plot(
            x.value, 100 * y.value, color=color, label=name, markersize=8,
            marker=look[name].marker, linestyle="none",
        )  # fmt: skip
    ax.margins(y=_MARGIN)
    entropies = [x.value for x, _ in crosses.values()]
    if max(entropies) > _WIDE * min(entropies) > 0:
        # Trained models crowd at low entropies, and their start lies far to the right.
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.minorticks_off()
    ax.set_title(f"{title}: pass@1 (%) against entropy")
    ax.set_xlabel("entropy of the answers (nats per token)")
    legend_below(figure)
    return figure


@styled
def lengths_by_verdict(answers: Mapping[str, pl.DataFrame], title: str) -> Figure | None:
    """Lengths of right and of other answers, two boxes per model (LESE, Table 2).

    Args:
        answers: `status` and `num_tokens` of each model's answers.
        title: name of the problem set.
    """
    if not answers:
        return None
    figure = Figure(figsize=(WIDTH_IN, 1.0 + 0.62 * len(answers)))
    ax = figure.subplots()
    for place, frame in enumerate(answers.values()):
        is_right = frame["status"] == Status.OK
        for shift, color, rows in (
            (-0.19, RIGHT, frame.filter(is_right)),
            (0.19, WRONG, frame.filter(~is_right)),
        ):
            _draw_box(ax, place + shift, rows["num_tokens"], color)
    ax.set_yticks(range(len(answers)), list(answers))
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.margins(x=0.15)
    ax.grid(axis="y", visible=False)
    ax.set_title(f"{title}: tokens per answer")
    for color, label in ((RIGHT, "right"), (WRONG, "not right")):
        ax.plot([], [], "s", color=color, label=label)
    legend_below(figure)
    return figure


@dataclass(frozen=True)
class _Strip:
    """One histogram of `distributions`."""

    label: str
    color: str
    rows: pl.DataFrame
    behind: pl.DataFrame | None = None
    target: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Middles of bins, and the density aimed at."""


def _strips(selections: Sequence[Selection], models: Sequence[str]) -> list[_Strip]:
    look = looks(models)
    strips: list[_Strip] = []
    candidates = next((s.candidates for s in selections if not s.candidates.is_empty()), None)
    if candidates is not None:
        strips.append(_Strip(f"{len(candidates)} candidates", _POOL, candidates))
    for selection in selections:
        if selection.rows.is_empty():
            continue
        color = look[selection.variants[-1]].color if selection.variants else INK
        users = f" for {', '.join(selection.variants)}" if selection.variants else ""
        label = f"{selection.name}: {len(selection.rows)}{users}"
        strips.append(_Strip(label, color, selection.rows, candidates, _density(selection)))
    return strips


def _density(selection: Selection) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    if selection.target is None or not sum(selection.target.counts):
        return None
    edges, counts = np.array(selection.target.edges), np.array(selection.target.counts, dtype=float)
    return (edges[:-1] + edges[1:]) / 2, counts / (counts.sum() * np.diff(edges))


def _draw_strip(ax: Axes, strip: _Strip, column: str, edges: NDArray[np.float64]) -> None:
    def clipped(rows: pl.DataFrame) -> NDArray[np.float64]:
        return np.clip(rows[column].to_numpy().astype(float), edges[0], edges[-1])

    bins = edges.tolist()
    if strip.behind is not None:
        ax.hist(clipped(strip.behind), bins=bins, density=True, color=_POOL, alpha=0.55)
    ax.hist(
        clipped(strip.rows), bins=bins, density=True, color=strip.color, alpha=0.85,
        histtype="stepfilled",
    )  # fmt: skip
    if strip.target is not None and column == "ppl":
        ax.plot(*strip.target, color=INK, linewidth=1.4, linestyle="--")
    median = float(np.median(strip.rows[column].to_numpy()))
    ax.plot([min(median, edges[-1])], [0], "^", color=INK, markersize=6, clip_on=False, zorder=5)
    ax.set_title(f"{strip.label}, median {median:.3g}", fontsize=10, pad=2)
    ax.set_yticks([])
    ax.tick_params(axis="x", length=0)
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)


def _draw_box(ax: Axes, place: float, lengths: pl.Series, color: str) -> None:
    if lengths.is_empty():
        return
    tokens = lengths.to_numpy()
    drawn = ax.boxplot(
        tokens, positions=[place], widths=0.3, orientation="horizontal", whis=(5, 95),
        showfliers=False, patch_artist=True, manage_ticks=False,
        medianprops={"color": "white", "linewidth": 2},
    )  # fmt: skip
    for part in (*drawn["boxes"], *drawn["whiskers"], *drawn["caps"]):
        part.set_color(color)
    end = float(np.quantile(tokens, 0.95))
    ax.annotate(
        f"n = {len(tokens)}", (end, place), xytext=(5, 0), textcoords="offset points",
        va="center", fontsize=9, color=SOFT,
    )  # fmt: skip


def _smoothed(
    steps: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Means of the finite values in windows, each placed at its window's middle update."""
    window = len(values) // 20
    ones, is_finite = np.ones(window), np.isfinite(values)
    sums = np.convolve(np.where(is_finite, values, 0.0), ones, "valid")
    counts = np.convolve(is_finite.astype(float), ones, "valid")
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0.5)
    return steps[window // 2 :][: len(means)], means
