"""Verb `watch`: a live view of a training in the terminal, from its metrics alone.

Not here: the rules behind its warnings (`tracking/alarms.py`).
"""

import itertools
import json
import math
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

_SPARKS = "▁▂▃▄▅▆▇█"
_WIDTH = 24
_REFRESH_S = 1.0
_QUIET_S, _ONCE_QUIET_S = 0.05, 2.0
_MOST_ALARMS = 6
_STILL_S, _STILL_UPDATES = 60.0, 3
"""A training that wrote nothing for so many seconds and updates gives way to a newer one."""
_GROUPS = {
    "speed": ("perf/", "time/"),
    "loss": ("train/",),
    "policy": ("policy/", "mismatch/"),
    "reward": ("reward/", "groups/", "lese/", "srft/", "pool/"),
    "length": ("response_length/", "prompt_length/"),
    "held out": ("eval/",),
}
_HIDDEN = ("reward/status_", "train/nonfinite_skipped", "groups/refills")
_STDIN = "-"


class Source(Protocol):
    """Where lines of metrics come from."""

    @property
    def name(self) -> str:
        """The training they are of; empty if unknown."""
        ...

    def read(self) -> list[dict[str, float]]:
        """All rows so far."""
        ...


def watch(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Folder of a run or a training, a metrics.jsonl, or - for standard input.",
        ),
    ],
    updates: Annotated[
        int | None,
        typer.Option(
            "--updates", help="Updates in all, for the time left, where not as planned.", min=1
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show the state and leave.")] = False,
) -> None:
    """Watch a training: losses, entropy, reward, lengths, speed, time left, warnings.

    Of a run's folder the training that wrote last is shown, until it is finished or writes nothing
    more while another one does. A remote run: ssh HOST tail -n +1 -F
    RUN/70-train-grpo/metrics.jsonl | mreason watch -

    Example: mreason watch runs/oxa-quickstart
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    quiet_s = _ONCE_QUIET_S if once else _QUIET_S
    source: Source = _Stream(quiet_s) if run == _STDIN else _File(Path(run))
    if once:
        console.print(_shown(source, updates))
        return
    try:
        with Live(console=console, refresh_per_second=4) as live:
            while True:
                live.update(_shown(source, updates))
                time.sleep(_REFRESH_S)
    except KeyboardInterrupt:
        return


def _shown(source: Source, updates: int | None) -> "RenderableType":
    rows = source.read()
    return view(rows, updates, source.name)


def view(
    rows: Sequence[Mapping[str, float]], updates: int | None, name: str = ""
) -> "RenderableType":
    """What is shown of the metrics: what must be seen stands above, as a low terminal cuts below.

    Args:
        rows: lines of `metrics.jsonl` so far.
        updates: updates in all; None takes what the training says of itself.
        name: the training; empty if unknown.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from megatron_reason.tracking.alarms import alarms, curves_of

    if not rows:
        return Text("no update yet")
    curves = curves_of(rows)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "metric", "now", "of 10", "course"):
        table.add_column(column, no_wrap=True, overflow="fold" if column == "metric" else "crop")
    for group, names in _grouped(curves):
        for place, metric in enumerate(names):
            _, values = curves[metric]
            recent = [value for value in values[-10:] if math.isfinite(value)]
            mean = f"{sum(recent) / len(recent):.3g}" if recent else "-"
            table.add_row(
                group if place == 0 else "", metric, f"{values[-1]:.3g}", mean, sparkline(values)
            )
    found = alarms(rows)[-_MOST_ALARMS:]
    lines = [
        Text(
            f"update {alarm.step}: {alarm.text}{' (over)' if alarm.is_over else ''}",
            style="dim" if alarm.is_over else "bold red",
        )
        for alarm in found
    ]
    title = Text(": ".join(filter(None, [name, headline(rows, updates)])), style="bold")
    return Group(title, *(lines or [Text("no warnings", style="dim")]), table)


def headline(rows: Sequence[Mapping[str, float]], updates: int | None) -> str:
    """One line: update, speed, time left, how long ago the newest line was written."""
    last = rows[-1]
    step = int(last["step"])
    updates = updates or _planned(rows)
    seconds = _seconds_per_update(rows)
    parts = [f"update {step}" + (f" of {updates}" if updates else "")]
    if seconds is not None:
        parts.append(f"{seconds:.3g} s an update")
        if updates and updates > step:
            parts.append(f"{_duration(seconds * (updates - step))} left")
    if "time" in last:
        parts.append(f"written {_duration(max(time.time() - last['time'], 0))} ago")
    return ", ".join(parts)


def sparkline(values: Sequence[float]) -> str:
    """The last so many values, or means of as many stretches, as bars; · where not finite."""
    size = max(math.ceil(len(values) / _WIDTH), 1)
    parts = [values[i : i + size] for i in range(0, len(values), size)]
    means = [sum(part) / len(part) for part in parts]
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return "·" * len(means)
    low, span = min(finite), max(finite) - min(finite)
    return "".join(
        _SPARKS[min(int((mean - low) / span * len(_SPARKS)), len(_SPARKS) - 1) if span else 0]
        if math.isfinite(mean)
        else "·"
        for mean in means
    )


class _File:
    """The metrics of a folder; read again when they grew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._newest()
        self._size, self._grown_s = -1, time.monotonic()
        self._rows: list[dict[str, float]] = []

    @property
    def name(self) -> str:
        return self._file.resolve().parent.name

    def read(self) -> list[dict[str, float]]:
        from megatron_reason.tracking.jsonl import read_metrics

        if self._is_over() and (newest := self._newest()) != self._file:
            self._file, self._size = newest, -1
        size = self._file.stat().st_size
        if size != self._size:
            self._rows = read_metrics(self._file)
            self._size, self._grown_s = size, time.monotonic()
        return self._rows

    def _is_over(self) -> bool:
        """Whether the training watched is finished, gone, or has been still for long."""
        from megatron_reason.files import STAGE_MANIFEST

        patience_s = max(_STILL_S, _STILL_UPDATES * (_seconds_per_update(self._rows) or 0.0))
        return (
            time.monotonic() - self._grown_s > patience_s
            or (self._file.parent / STAGE_MANIFEST).is_file()
            or not self._file.is_file()
        )

    def _newest(self) -> Path:
        """The file that was written last.

        Raises:
            DataError: there is none.
        """
        from megatron_reason.errors import DataError
        from megatron_reason.tracking.jsonl import METRICS

        if self._path.is_file():
            return self._path
        direct = self._path / METRICS
        found = [direct] if direct.is_file() else [*self._path.glob(f"*/{METRICS}")]
        if not found:
            raise DataError(
                str(self._path),
                f"no {METRICS} lies here or one folder below.",
                "Give the folder of a run whose training has begun.",
            )
        return max(found, key=lambda path: path.stat().st_mtime)


class _Stream:
    """Lines that arrive on standard input.

    Args:
        quiet_s: seconds of silence after which what has come is taken for all there is for now.
    """

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._rest = b""
        self._rows: list[dict[str, float]] = []

    @property
    def name(self) -> str:
        return ""

    def read(self) -> list[dict[str, float]]:
        stream = sys.stdin.fileno()
        while select.select([stream], [], [], self._quiet_s)[0]:
            # Not readline: what it buffers, select does not see.
            arrived = os.read(stream, 1 << 16)
            if not arrived:
                break
            *lines, self._rest = (self._rest + arrived).split(b"\n")
            self._rows += [row for line in lines if (row := _row(line)) is not None]
        return self._rows


def _row(line: bytes) -> dict[str, float] | None:
    """A line of metrics; None for what is none: `tail` may begin in the middle of one."""
    try:
        row = {name: float(value) for name, value in json.loads(line).items()}
        return {**row, "step": int(row["step"])}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _grouped(curves: Mapping[str, object]) -> Iterator[tuple[str, list[str]]]:
    shown = [name for name in curves if not name.startswith(_HIDDEN)]
    for group, prefixes in _GROUPS.items():
        if names := [name for name in shown if name.startswith(prefixes)]:
            yield group, names


def _planned(rows: Sequence[Mapping[str, float]]) -> int | None:
    """Updates in all, as the newest line says that knows it."""
    from megatron_reason.tracking.jsonl import PLANNED

    return next((int(row[PLANNED]) for row in reversed(rows) if PLANNED in row), None)


def _seconds_per_update(rows: Sequence[Mapping[str, float]]) -> float | None:
    """Median over the last updates; pauses do not count."""
    recent = [row for row in rows[-20:] if "time" in row]
    gaps = sorted(
        (b["time"] - a["time"]) / (b["step"] - a["step"])
        for a, b in itertools.pairwise(recent)
        if b["step"] > a["step"]
    )
    return gaps[len(gaps) // 2] if gaps else None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{rest} s"
