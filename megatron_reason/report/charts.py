"""What the page's script draws: curves as data, with hover and zoom.

Every chart has a PNG beside it, which stands in its place where no script runs and in print. Not
here: the script (`chart.js.j2`) and those pictures (`figures.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from megatron_reason.evaluation.summary import EvalSummary
from megatron_reason.report.drawing import looks

_MOST_POINTS = 1500
_DASHES = {"-": "", "--": "7 4", "-.": "7 3 2 3", ":": "2 3"}


@dataclass(frozen=True)
class Chart:
    """Lines over one axis."""

    title: str
    x_label: str
    is_log2: bool
    """Whether the horizontal axis is logarithmic."""
    series: list[dict[str, Any]]
    """Each with name, color, dash, and points [x, y] or [x, y, low, high]."""


def training_chart(
    training: Mapping[str, pl.DataFrame], metric: str, title: str, models: list[str]
) -> Chart | None:
    """One metric over the updates; None where nobody logged it.

    Args:
        training: metrics of each variant, with a column `step`.
        metric: column to draw.
        title: what it is, with its unit.
        models: all models, for their colours.
    """
    look = looks(models)
    series: list[dict[str, Any]] = []
    for name, frame in training.items():
        if metric not in frame.columns:
            continue
        line = frame.select("step", pl.col(metric).cast(pl.Float64)).drop_nulls()
        points = [[step, value] for step, value in line.iter_rows() if math.isfinite(value)]
        if points:
            stride = math.ceil(len(points) / _MOST_POINTS)
            # The newest value is what one looks for.
            kept = points[::-1][::stride][::-1]
            series.append(_series(name, look[name].color, look[name].linestyle, kept))
    return Chart(title, "update", is_log2=False, series=series) if series else None


def pass_chart(summaries: Mapping[str, EvalSummary], title: str, models: list[str]) -> Chart | None:
    """pass@k (%) against k with bands; None without evaluations.

    Args:
        summaries: evaluation of each model.
        title: name of the problem set.
        models: all models, for their colours.
    """
    look = looks(models)
    series: list[dict[str, Any]] = []
    for name, summary in summaries.items():
        points = sorted(
            [int(key.removeprefix("pass@")), 100 * e.value, 100 * e.low, 100 * e.high]
            for key, e in summary.metrics.items()
            if key.startswith("pass@")
        )
        series.append(_series(name, look[name].color, look[name].linestyle, points))
    return Chart(f"{title}: pass@k (%)", "k", is_log2=True, series=series) if series else None


def _series(name: str, color: str, style: object, points: list[list[float]]) -> dict[str, Any]:
    dash = _DASHES.get(style, "5 2 1 2") if isinstance(style, str) else "5 2 1 2"
    return {"name": name, "color": color, "dash": dash, "points": points}
