"""Entropy over training, with what happened on the way (OXA 2c, SRFT 6c, LESE 4d).

Events are what the rules of `tracking/alarms.py` say and restarts seen in the clock. Not here: how
entropy is measured (`engine/forward.py`: mean over tokens of the full-vocabulary entropy).
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from megatron_reason.report.analysis import Plot, analysis
from megatron_reason.report.drawing import (
    SOFT,
    WRONG,
    Figure,
    legend_below,
    looks,
    panel,
    styled,
)
from megatron_reason.report.places import trainings
from megatron_reason.tracking.alarms import alarms, curves_of
from megatron_reason.tracking.jsonl import read_metrics

_LONG_PAUSE = 20
"""Times the usual step that a pause must last to count as a restart."""
_ENTROPY = "train/entropy_"
_STYLES = ("-", "--", ":")
"""Lines of each kind of token, the same for all models."""


@dataclass(frozen=True)
class Event:
    """Something that happened during a training."""

    step: int
    what: str
    is_warning: bool


def events(rows: Sequence[Mapping[str, float]]) -> list[Event]:
    """Restarts and warnings of a training, by update.

    Args:
        rows: lines of its `metrics.jsonl`.
    """
    gaps = [b["time"] - a["time"] for a, b in itertools.pairwise(rows)]
    usual = sorted(gaps)[len(gaps) // 2] if gaps else 0.0
    restarts = [
        Event(int(row["step"]), "went on after a pause", is_warning=False)
        for row, gap in zip(rows[1:], gaps, strict=True)
        if gap > _LONG_PAUSE * max(usual, 1.0)
    ]
    warnings = [Event(alarm.step, alarm.text, is_warning=True) for alarm in alarms(rows)]
    return sorted([*restarts, *warnings], key=lambda event: event.step)


@styled
def entropy_curves(
    curves: Mapping[str, pl.DataFrame], found: Mapping[str, Sequence[Event]]
) -> Figure | None:
    """A line per model and kind of token, events as marks on the axis.

    Args:
        curves: columns metric, step, value, by model.
        found: events, by model.
    """
    figure, ax = panel("entropy (nats per token)", "update", height_in=3.6)
    look, drawn = looks(list(curves)), False
    kinds = list(dict.fromkeys(kind for frame in curves.values() for kind in frame["metric"]))
    for model, frame in curves.items():
        for key, line in frame.group_by("metric", maintain_order=True):
            style = _STYLES[kinds.index(str(key[0])) % len(_STYLES)]
            kind = str(key[0]).removeprefix(_ENTROPY)
            ax.plot(
                line["step"].to_numpy(), line["value"].to_numpy(), linestyle=style,
                color=look[model].color, linewidth=1.6, label=f"{model}, {kind} tokens",
            )  # fmt: skip
            drawn = True
    if not drawn:
        return None
    ax.set_ylim(bottom=0)
    low, high = ax.get_ylim()
    marks = [(model, event) for model, one in found.items() for event in one]
    for place, (model, event) in enumerate(marks):
        color = WRONG if event.is_warning else SOFT
        ax.axvline(event.step, color=color, linewidth=0.8, alpha=0.7)
        is_left = event.step < sum(ax.get_xlim()) / 2
        words = event.what[:46] if len(curves) == 1 else f"{model}: {event.what[:46]}"
        ax.text(
            event.step, high - (0.05 + 0.075 * (place % 6)) * (high - low), f" {words} ",
            fontsize=6.5, color=color, ha="left" if is_left else "right", in_layout=False,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
        )  # fmt: skip
    legend_below(figure)
    return figure


@analysis("entropy", takes="trainings")
def draw(inputs: Sequence[str]) -> Iterator[Plot]:
    """Entropy over the updates, with restarts and warnings (OXA 2c, SRFT 6c, LESE 4d)."""
    curves: dict[str, pl.DataFrame] = {}
    found: dict[str, list[Event]] = {}
    for label, path in trainings(inputs).items():
        rows = read_metrics(path)
        found[label] = events(rows)
        curves[label] = pl.DataFrame(
            [
                {"metric": name, "step": step, "value": value}
                for name, (steps, values) in curves_of(rows).items()
                if name.startswith(_ENTROPY)
                for step, value in zip(steps, values, strict=True)
            ],
            schema={"metric": pl.String, "step": pl.Int64, "value": pl.Float64},
        )
    numbers = pl.concat(
        frame.select(pl.lit(m).alias("model"), pl.all()) for m, frame in curves.items()
    )
    yield Plot(
        "entropy",
        "Mean over tokens of the entropy of the full next-token distribution, by what the tokens "
        "are trained for; marks: restarts and what the warning rules say.",
        entropy_curves(curves, found),
        numbers,
    )
    listed = [
        {"model": label, "step": event.step, "event": event.what}
        for label, some in found.items()
        for event in some
    ]
    if listed:
        yield Plot("entropy_events", "What happened.", event_strip(found), pl.DataFrame(listed))


@styled
def event_strip(found: Mapping[str, Sequence[Event]]) -> Figure | None:
    """Events of each training in words, a line each."""
    lines = [(model, event) for model, some in found.items() for event in some]
    if not lines:
        return None
    figure, ax = panel("what happened", "", height_in=0.6 + 0.24 * len(lines))
    ax.set_axis_off()
    ax.set_ylim(len(lines), 0)
    for row, (model, event) in enumerate(lines):
        color = WRONG if event.is_warning else SOFT
        text = f"{model}, update {event.step}: {event.what}"
        ax.text(0, row + 0.7, text, fontsize=8, color=color)
    return figure
