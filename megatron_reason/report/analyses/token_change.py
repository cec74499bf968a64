"""SRFT (arXiv 2506.19767) Figures 2 and A1: how training changes the probability of each token.

Teacher forcing at temperature 1 over answers of the model before: delta = p_after - p_before. The
paper draws darker where |delta| is larger and does not name the model that wrote the response; ours
keeps the sign. Not here: the probabilities (`evaluation/token_scores.py`).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.report.analysis import Plot, analysis, slug
from megatron_reason.report.drawing import (
    INK,
    Figure,
    diverging_colour,
    legend_below,
    looks,
    panel,
    styled,
)
from megatron_reason.report.places import token_scores

_UNCHANGED = 0.02
_MOST_TOKENS = 240
_LINE_WIDTH = 74
_BINS = np.linspace(-1, 1, 81)
_KEYS = ["problem_id", "sample_index"]


def token_changes(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Columns problem_id, sample_index, token, p_before, p_after, delta: a row per token.

    Args:
        before: token scores of the answers under one model.
        after: under another with the same tokenizer.

    Raises:
        DataError: no answer in common, or tokens that differ.
    """
    columns = [*_KEYS, "tokens", "ids", "logprobs"]
    joined = before.select(columns).join(after.select(columns), on=_KEYS, suffix="_after")
    if joined.is_empty():
        raise DataError(
            "token_change", "the two have no answer in common.", "Score the same answers with both."
        )
    if len(joined.filter(pl.col("ids") != pl.col("ids_after"))):
        raise DataError(
            "token_change",
            "the models divide the same answers into different tokens.",
            "Compare models with one tokenizer.",
        )
    long = joined.sort(_KEYS).explode("tokens", "logprobs", "logprobs_after")
    p_before, p_after = pl.col("logprobs").exp(), pl.col("logprobs_after").exp()
    return long.select(
        *_KEYS, token="tokens", p_before=p_before, p_after=p_after, delta=p_after - p_before
    )


def change_summary(changes: pl.DataFrame) -> dict[str, float]:
    """Mean |delta|, share of tokens below 0.02, and quantiles of delta."""
    delta = changes["delta"]
    quantiles = {
        f"quantile_{share}": float(np.quantile(delta.to_numpy(), share))
        for share in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    }
    return {
        "num_tokens": len(delta),
        "mean_abs_delta": float(delta.abs().to_numpy().mean()),
        "unchanged_fraction": len(delta.filter(delta.abs() < _UNCHANGED)) / len(delta),
        **quantiles,
    }


@styled
def heat_map(changes: pl.DataFrame, title: str) -> Figure | None:
    """One response as text, each token on a ground of its delta: red fell, blue rose.

    Args:
        changes: of `token_changes`, one response.
        title: what is compared.
    """
    shown = changes.head(_MOST_TOKENS)
    if shown.is_empty():
        return None
    lines = _lines(shown)
    figure, ax = panel(title, "", height_in=0.7 + 0.21 * len(lines))
    ax.set_axis_off()
    ax.set_xlim(0, _LINE_WIDTH)
    ax.set_ylim(len(lines), 0)
    for row, line in enumerate(lines):
        for column, text, delta in line:
            colour = diverging_colour(delta)
            ax.broken_barh([(column, len(text))], (row + 0.05, 0.9), facecolors=colour)
            ax.text(column, row + 0.72, text, family="monospace", fontsize=6.6, color=INK)
    return figure


@styled
def change_histogram(changes: dict[str, pl.DataFrame], title: str) -> Figure | None:
    """Distribution of delta over all tokens, on a logarithmic axis, a line per model."""
    if not changes:
        return None
    figure, ax = panel(f"{title}: change of token probabilities", "p after - p before")
    look = looks(list(changes))
    for label, frame in changes.items():
        summary = change_summary(frame)
        counts, _ = np.histogram(frame["delta"].to_numpy(), _BINS)
        unchanged = 100 * summary["unchanged_fraction"]
        ax.stairs(
            100 * counts / counts.sum(), _BINS, color=look[label].color, linewidth=1.6,
            label=f"{label}: {unchanged:.0f} % within ±{_UNCHANGED}",
        )  # fmt: skip
    ax.set_yscale("log")
    ax.set_ylabel("% of tokens")
    legend_below(figure)
    return figure


@analysis("token_change", takes="token scores of the same answers, the model before first")
def draw(inputs: Sequence[str]) -> Iterator[Plot]:
    """Change of token probabilities, over one response and over all (SRFT, Figures 2 and A1)."""
    (first, before), *others = (
        (label, pl.read_parquet(path)) for label, path in token_scores(inputs).items()
    )
    changes = {label: token_changes(before, after) for label, after in others}
    rows = [{"model": label, **change_summary(frame)} for label, frame in changes.items()]
    yield Plot(
        "token_change_distribution",
        f"Distribution of p after - p before over all tokens of the scored answers; before: "
        f"{first}.",
        change_histogram(changes, f"against {first}"),
        pl.DataFrame(rows),
    )
    for label, frame in changes.items():
        one = frame.filter(pl.struct(_KEYS) == frame.select(pl.struct(_KEYS).first()).item())
        yield Plot(
            f"token_change_{slug(label)}",
            f"One response, its tokens on a ground of p({label}) - p({first}): blue rose, red "
            "fell, white did not change.",
            heat_map(one, f"{label} - {first}"),
            one,
        )


def _lines(changes: pl.DataFrame) -> list[list[tuple[int, str, float]]]:
    """Tokens laid out as text: (column, text, delta) in each line."""
    lines: list[list[tuple[int, str, float]]] = [[]]
    column = 0
    for token, delta in changes.select("token", "delta").iter_rows():
        text = token.replace("\n", "⏎").replace("\t", " ") or "·"
        if column + len(text) > _LINE_WIDTH:
            lines.append([])
            column = 0
        lines[-1].append((column, text[:_LINE_WIDTH], delta))
        column += len(text)
        if "\n" in token:
            lines.append([])
            column = 0
    return [line for line in lines if line]
