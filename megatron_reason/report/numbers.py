"""Run -> the tables behind the figures, in the columns that `figures.py` documents.

Every function answers with an empty frame where the run has nothing yet. Not here: reading and
drawing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from megatron_reason.report.reading import Evaluation, RunView, Selection
from megatron_reason.schema.records import Status

_NOT_PARTS = ("train/entropy", "train/grad_norm", "train/lr", "train/nonfinite_skipped")
_POINT: dict[str, type[pl.DataType]] = {
    "panel": pl.String, "variant": pl.String, "step": pl.Int64, "value": pl.Float64,
}  # fmt: skip


@dataclass(frozen=True)
class Distributions:
    """Arguments of `figures.distributions`."""

    values: pl.DataFrame
    targets: pl.DataFrame


def selected(selections: Sequence[Selection], column: str) -> Distributions:
    """Values of `column` before and after each selection.

    Args:
        selections: selections shown, those without values left out.
        column: `ppl`, which comes with the rules' aims, or `num_tokens`.
    """
    values: list[pl.DataFrame] = []
    targets: list[tuple[str, float, float, int]] = []
    for selection in selections:
        title = selection.name
        if selection.variants:
            title += f" ({', '.join(selection.variants)})"
        for part, frame in (("pool", selection.pool), ("taken", selection.taken)):
            value = frame[column].cast(pl.Float64).drop_nulls()
            values.append(
                pl.DataFrame({"value": value.filter(value.is_finite())}).select(
                    pl.lit(selection.name).alias("selection"),
                    pl.lit(title).alias("title"),
                    pl.lit(part).alias("part"),
                    "value",
                )
            )
        if column == "ppl":
            bins = zip(selection.edges, selection.edges[1:], selection.target, strict=False)
            targets += [(selection.name, low, high, count) for low, high, count in bins]
    schema = {"selection": pl.String, "low": pl.Float64, "high": pl.Float64, "count": pl.Int64}
    columns = ("selection", "title", "part")
    empty = pl.DataFrame(schema={**dict.fromkeys(columns, pl.String), "value": pl.Float64})
    return Distributions(
        pl.concat(values) if values else empty, pl.DataFrame(targets, schema, orient="row")
    )


def loss_parts(run: RunView) -> pl.DataFrame:
    """The loss and each of its terms over training."""
    names = _names(run)
    parts = [n for n in names if n.startswith("train/") and not n.startswith(_NOT_PARTS)]
    parts.sort(key=lambda name: name != "train/loss")
    return _points(run, {name: name for name in parts})


def entropies(run: RunView) -> pl.DataFrame:
    """Entropy of the model's predictions over training, by the role of the sequence."""
    roles = [name for name in _names(run) if name.startswith("train/entropy_")]
    return _points(run, {name: f"{name.removeprefix('train/entropy_')} tokens" for name in roles})


def progress_of_optimizer(run: RunView) -> pl.DataFrame:
    """Gradient norm and learning rate over training."""
    return _points(
        run,
        {"train/grad_norm": "gradient norm, before clipping", "train/lr": "learning rate"},
    )


def pass_at_k(evaluations: Sequence[Evaluation]) -> pl.DataFrame:
    """pass@k with interval, for every k that was estimated."""
    rows = [
        (evaluation.variant, int(name.removeprefix("pass@")), e.value, e.low, e.high)
        for evaluation in evaluations
        for name, e in evaluation.summary.metrics.items()
        if name.startswith("pass@")
    ]
    number = pl.Float64
    schema = {"variant": pl.String, "k": pl.Int64, "value": number, "low": number, "high": number}
    return pl.DataFrame(rows, schema, orient="row")


def headline_intervals(evaluations: Sequence[Evaluation]) -> pl.DataFrame:
    """pass@1 and mean entropy with interval."""
    panels = {"pass@1": "pass@1", "mean_entropy": "mean entropy, nats"}
    rows = [
        (panel, evaluation.variant, e.value, e.low, e.high)
        for metric, panel in panels.items()
        for evaluation in evaluations
        if (e := evaluation.summary.metrics.get(metric)) is not None
    ]
    columns = ("value", "low", "high")
    schema = {"panel": pl.String, "variant": pl.String, **dict.fromkeys(columns, pl.Float64)}
    return pl.DataFrame(rows, schema, orient="row")


def answer_lengths(evaluations: Sequence[Evaluation]) -> pl.DataFrame:
    """Length of every answer, and whether it is right."""
    frames = [
        evaluation.answers.select(
            pl.lit(evaluation.variant).alias("variant"),
            (pl.col("status") == Status.OK).alias("is_right"),
            "num_tokens",
        )
        for evaluation in evaluations
        if not evaluation.answers.is_empty()
    ]
    schema = {"variant": pl.String, "is_right": pl.Boolean, "num_tokens": pl.Int32}
    return pl.concat(frames) if frames else pl.DataFrame(schema=schema)


def _names(run: RunView) -> list[str]:
    """Names of all metrics, in the order in which they first occur."""
    rows = [row for rows in run.metrics.values() for row in rows]
    return list(dict.fromkeys(name for row in rows for name in row))


def _points(run: RunView, panels: Mapping[str, str]) -> pl.DataFrame:
    points = [
        (panel, variant, int(row["step"]), row[name])
        for name, panel in panels.items()
        for variant, rows in run.metrics.items()
        for row in rows
        if name in row
    ]
    return pl.DataFrame(points, _POINT, orient="row")
