"""The numbers behind each figure, as tables that are saved beside it.

Not here: drawing (`figures.py`), which needs matplotlib; this file does not.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megatron_reason.evaluation.estimators import Estimate
from megatron_reason.evaluation.summary import EvalSummary
from megatron_reason.report.run_data import Selection
from megatron_reason.schema.records import Status

_NUM_BINS = 24
_SHOWN_SHARE = 0.98
_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


def bin_edges(selections: Sequence[Selection], column: str) -> NDArray[np.float64]:
    """Edges of the bins in which selections from one pool are shown.

    Args:
        selections: at least one, with at least one row.
        column: `ppl` or `num_tokens`.
    """
    parts = [frame[column] for s in selections for frame in (s.candidates, s.rows)]
    values = np.concatenate([part.to_numpy().astype(float) for part in parts])
    low, high = values.min(), np.quantile(values, _SHOWN_SHARE)
    return np.linspace(low, max(high, low + 1e-6), _NUM_BINS + 1)


def selection_numbers(selections: Sequence[Selection], column: str) -> pl.DataFrame:
    """Columns low, high, candidates, and one per selection: responses in each bin.

    Values above the last bin are counted in it; empty if no selection has rows.
    """
    chosen = [selection for selection in selections if not selection.rows.is_empty()]
    if not chosen:
        return pl.DataFrame()
    edges = bin_edges(chosen, column)

    def counts(rows: pl.DataFrame) -> NDArray[np.int64]:
        values = np.clip(rows[column].to_numpy().astype(float), edges[0], edges[-1])
        return np.histogram(values, edges)[0]

    return pl.DataFrame(
        {"low": edges[:-1], "high": edges[1:], "candidates": counts(chosen[0].candidates)}
        | {selection.name: counts(selection.rows) for selection in chosen}
    )


def training_numbers(training: Mapping[str, pl.DataFrame], metric: str) -> pl.DataFrame:
    """Columns model, step, value: one metric as it was logged."""
    frames = [
        frame.select(pl.lit(name).alias("model"), "step", pl.col(metric).alias("value"))
        for name, frame in training.items()
        if metric in frame.columns
    ]
    return pl.concat(frames).drop_nulls() if frames else pl.DataFrame()


def metric_numbers(summaries: Mapping[str, EvalSummary], *patterns: str) -> pl.DataFrame:
    """Columns model, metric, value, low, high, n: metrics whose names match, as file names do."""
    rows: list[dict[str, str | float]] = [
        {"model": name, "metric": metric, **_fields(estimate)}
        for name, summary in summaries.items()
        for metric, estimate in summary.metrics.items()
        if any(fnmatchcase(metric, pattern) for pattern in patterns)
    ]
    return pl.DataFrame(rows)


def length_numbers(answers: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Columns model, is_right, n, p5, p25, p50, p75, p95: tokens of the answers.

    Args:
        answers: `status` and `num_tokens` of each model's answers.
    """
    quantiles = [
        pl.col("num_tokens").quantile(share, "linear").alias(f"p{100 * share:.0f}")
        for share in _SHARES
    ]
    frames = [
        frame.group_by(is_right=pl.col("status") == Status.OK)
        .agg(pl.len().alias("n"), *quantiles)
        .sort("is_right", descending=True)
        .select(pl.lit(name).alias("model"), pl.all())
        for name, frame in answers.items()
    ]
    return pl.concat(frames) if frames else pl.DataFrame()


def _fields(estimate: Estimate) -> dict[str, float]:
    return {
        "value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n,
    }  # fmt: skip
