"""Training dynamics (SRFT 6, LESE 3 and 4): loss, reward, lengths, accuracy and weights.

Whatever of it the metrics hold is drawn. LESE's alpha stands in the stored rollouts, one per
response; SRFT's weights (eqs. 8 and 12) are logged as means over the tokens they apply to. Not
here: entropy itself (`entropy.py`).
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from megatron_reason.report.analysis import Plot, analysis, slug
from megatron_reason.report.drawing import Figure, legend_below, looks, panel, styled
from megatron_reason.report.figures import training_curve
from megatron_reason.report.numbers import training_numbers
from megatron_reason.report.places import trainings
from megatron_reason.tracking.jsonl import read_metrics

_CURVES = {
    "train/loss": ("loss", "What was minimised; losses of different methods do not compare."),
    "reward/mean": ("reward", "Mean reward of the rollouts of each update."),
    "reward/format": (
        "reward for form",
        "The part of the reward that tags alone earn, right answers or not (LESE: at most 1.1).",
    ),
    "response_length/mean": ("tokens per rollout", "Mean length of the rollouts of each update."),
    "response_length/truncated": (
        "share of rollouts cut at the limit",
        "A rising share means that answers need more room, or that the model rambles.",
    ),
    "groups/mixed": (
        "share of mixed groups",
        "Groups neither all right nor all wrong: only these teach a method of group advantages.",
    ),
    "lese/alpha": ("alpha, mean", "LESE's weight of imitation, mean over the update's groups."),
    "srft/w_sft": (
        "SRFT's weight of demonstrations",
        "0.5 exp(-H), mean over the tokens of demonstrations.",
    ),
    "srft/w_rl": (
        "SRFT's weight of correct rollouts",
        "0.1 exp(H), mean over the tokens of correct rollouts; 0 where an update has none.",
    ),
}
_EVAL = "eval/"
_BINS = np.linspace(0, 1, 21)


def alphas(rollouts: Path) -> pl.DataFrame:
    """Columns step, alpha: the coefficient of each distinct group of the stored rollouts.

    Args:
        rollouts: folder of `step_*.jsonl`; lines that are cut short are passed over.
    """
    rows: list[dict[str, float]] = []
    for path in sorted(rollouts.glob("step_*.jsonl")):
        step = int(path.stem.removeprefix("step_"))
        groups: dict[str, float] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                groups[row["problem_id"]] = float(row["coef"])
            except (ValueError, KeyError, TypeError):
                continue
        rows += [{"step": step, "alpha": alpha} for alpha in groups.values()]
    return pl.DataFrame(rows, schema={"step": pl.Int64, "alpha": pl.Float64})


@styled
def alpha_histogram(found: Mapping[str, pl.DataFrame]) -> Figure | None:
    """Shares of groups by alpha, the first and the last third of each training."""
    figure, ax = panel("coefficient of a group (LESE's alpha)", "alpha")
    look = looks(list(found))
    for label, frame in found.items():
        last = max(frame["step"].to_list(), default=0)
        for name, part, style in (
            ("first third", frame.filter(pl.col("step") <= last / 3), ":"),
            ("last third", frame.filter(pl.col("step") > 2 * last / 3), "-"),
        ):
            if part.is_empty():
                continue
            counts, _ = np.histogram(np.clip(part["alpha"].to_numpy(), 0, 1), _BINS)
            ax.stairs(
                100 * counts / counts.sum(), _BINS, color=look[label].color, linestyle=style,
                linewidth=1.6, label=f"{label}, {name}",
            )  # fmt: skip
    ax.set_ylabel("% of groups")
    legend_below(figure)
    return figure


@analysis("dynamics", takes="trainings")
def draw(inputs: Sequence[str]) -> Iterator[Plot]:
    """Loss, reward, length, mixed groups, accuracy, LESE's alpha, SRFT's weights by update."""
    paths = trainings(inputs)
    training = {
        label: pl.DataFrame(rows, infer_schema_length=None)
        for label, path in paths.items()
        if (rows := read_metrics(path))
    }
    logged = sorted({name for frame in training.values() for name in frame.columns})
    accuracies = {
        name: (f"{name.removeprefix(_EVAL)} during training", "Held-out problems, answered as is.")
        for name in logged
        if name.startswith(_EVAL) and name.endswith("/pass@1")
    }
    for metric, (title, caption) in (_CURVES | accuracies).items():
        if metric in logged:
            yield Plot(
                slug(metric),
                caption,
                training_curve(training, metric, title, [*training]),
                training_numbers(training, metric),
            )
    found = {label: alphas(path.parent / "rollouts") for label, path in paths.items()}
    varied = {label: frame for label, frame in found.items() if _varies(frame)}
    if varied:
        yield Plot(
            "alpha_histogram",
            "Coefficients of the groups in the stored rollouts: dotted early, solid late.",
            alpha_histogram(varied),
            pl.concat(
                frame.select(pl.lit(m).alias("model"), pl.all()) for m, frame in varied.items()
            ),
        )


def _varies(frame: pl.DataFrame) -> bool:
    """Whether groups have coefficients of their own; without a method that sets them all are 1."""
    return any(not math.isclose(value, 1.0) for value in frame["alpha"].unique().to_list())
