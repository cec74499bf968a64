"""OXA (arXiv 2603.16206) Figure 2d: where a gain comes from, by how hard problems were before.

The paper names one group of its 128 samples, 5 to 16 right; the others are ours: none, 1 to 4,
17 to 64 and above, as shares of the samples so that other numbers of samples have groups too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.evaluation.compare import Evaluation, read_evaluation
from megatron_reason.evaluation.estimators import bootstrap
from megatron_reason.report.analysis import Plot, analysis, slug
from megatron_reason.report.drawing import Figure, legend_below, looks, panel, styled
from megatron_reason.report.places import evaluations
from megatron_reason.schema.records import Status

_UPPER_SHARES = (0.0, 1 / 32, 1 / 8, 1 / 2, 1.0)
_SEED = 0


@dataclass(frozen=True)
class Bucket:
    """Problems that the base model solved equally often."""

    label: str
    low: int
    """Fewest right samples."""
    high: int
    """Most."""


def buckets(num_samples: int) -> list[Bucket]:
    """Groups of right samples among `num_samples`: 0, 1-4, 5-16, 17-64, 65-128 for 128."""
    found: list[Bucket] = []
    low = 0
    for share in _UPPER_SHARES:
        high = int(share * num_samples)
        if high >= low:
            found.append(Bucket(f"{low}" if low == high else f"{low} to {high}", low, high))
            low = high + 1
    return found


def gains_by_base_count(
    base: Evaluation, others: Mapping[str, Evaluation], *, seed: int = _SEED
) -> pl.DataFrame:
    """Mean gain in the share of right samples, by how many the base model had right.

    Args:
        base: what gains are counted from.
        others: the trained models, by name, on the same problems.
        seed: of the bootstrap over problems.

    Returns:
        Columns model, base_right, num_problems, gain, low, high.

    Raises:
        DataError: no problem in common.
    """
    before = right_counts(base)
    rows: list[dict[str, object]] = []
    for name, other in others.items():
        joined = before.join(right_counts(other), on="problem_id", suffix="_after")
        if joined.is_empty():
            raise DataError(
                str(other.folder), "it has no problem of the base model.", "Give one suite."
            )
        gain = pl.col("num_right_after") / pl.col("n_after") - pl.col("num_right") / pl.col("n")
        joined = joined.with_columns(gain=gain)
        for bucket in buckets(base.samples_per_problem):
            part = joined.filter(pl.col("num_right").is_between(bucket.low, bucket.high))
            if part.is_empty():
                continue
            gains = part["gain"].to_list()
            mean = bootstrap(gains, [1] * len(gains), seed=seed, num_samples=len(gains))
            rows.append(
                {
                    "model": name, "base_right": bucket.label, "num_problems": len(gains),
                    "gain": mean.value, "low": mean.low, "high": mean.high,
                }
            )  # fmt: skip
    return pl.DataFrame(rows)


def right_counts(evaluation: Evaluation) -> pl.DataFrame:
    """Columns problem_id, num_right, n."""
    return evaluation.answers.group_by("problem_id", maintain_order=True).agg(
        num_right=(pl.col("status") == Status.OK).sum().cast(pl.Int64), n=pl.len().cast(pl.Int64)
    )


@styled
def gain_bars(numbers: pl.DataFrame, title: str) -> Figure | None:
    """Bars of `gains_by_base_count`, a group of bars per bucket."""
    if numbers.is_empty():
        return None
    models = numbers["model"].unique(maintain_order=True).to_list()
    groups = numbers["base_right"].unique(maintain_order=True).to_list()
    sizes = dict(numbers.select("base_right", "num_problems").iter_rows())
    figure, ax = panel(f"{title}: gain (points)", "right samples of the base model (problems)")
    width, look = 0.8 / len(models), looks(models)
    for index, model in enumerate(models):
        part = numbers.filter(pl.col("model") == model)
        places = np.array([groups.index(group) for group in part["base_right"]], dtype=float)
        places += (index - (len(models) - 1) / 2) * width
        gain, low, high = (100 * part[name].to_numpy() for name in ("gain", "low", "high"))
        ax.bar(places, gain, width * 0.92, color=look[model].color, label=model, alpha=0.85)
        ax.vlines(places, low, high, color="#1B1F24", linewidth=1)
    ax.axhline(0, color="#1B1F24", linewidth=0.8)
    ax.set_xticks(range(len(groups)), [f"{group}\n({sizes[group]})" for group in groups])
    legend_below(figure)
    return figure


@analysis("gains", takes="evaluations, that of the base model first")
def draw(inputs: Sequence[str]) -> Iterator[Plot]:
    """Gain over the first model, grouped by how often it was right (OXA, Figure 2d)."""
    for problem_set, folders in evaluations(inputs).items():
        (_, base), *others = ((name, read_evaluation(path)) for name, path in folders.items())
        numbers = gains_by_base_count(base, dict(others))
        yield Plot(
            f"gains_{slug(problem_set)}",
            "Mean gain in the share of right samples over the first model, with 95 % intervals "
            "over problems. Groups are made from its own samples, so part of a gain on the left "
            "and of a loss on the right is regression to the mean.",
            gain_bars(numbers, problem_set),
            numbers,
        )
