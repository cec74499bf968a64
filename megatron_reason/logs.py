"""Console logging and progress bars that know which rank they run on.

One logger (`get_logger`) for the whole package, rich on a terminal and plain lines in a file; only
rank 0 speaks below WARNING. Not here: metrics, which go through `tracking`.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_ROOT = "megatron_reason"
_SECONDS_BETWEEN_LINES = 10.0


def get_logger(name: str) -> logging.Logger:
    """Logger of a module; pass `__name__`."""
    return logging.getLogger(name)


def setup_logging(*, rank: int = 0, verbose: bool = False) -> None:
    """Attach one handler to the package's logger; call once per process.

    Args:
        rank: global rank; ranks above 0 report warnings and errors only.
        verbose: also show DEBUG records.
    """
    root = logging.getLogger(_ROOT)
    root.handlers.clear()
    root.propagate = False
    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(
            console=Console(stderr=True), show_path=False, rich_tracebacks=True
        )
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="%H:%M:%S"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        prefix = f"[rank {rank}] " if rank else ""
        handler.setFormatter(
            logging.Formatter(f"%(asctime)s %(levelname)-7s {prefix}%(message)s", "%H:%M:%S")
        )
    root.addHandler(handler)
    quiet = logging.WARNING if rank else logging.INFO
    root.setLevel(logging.DEBUG if verbose else quiet)


@dataclass
class ProgressBar:
    """Handle given out by `progress`; call `advance` as work gets done."""

    title: str
    total: int
    unit: str
    done: int = 0
    done_before: int = 0
    """Units that an earlier process did, and that say nothing of this one's rate."""
    _bar: Progress | None = None
    _task: int = 0
    _started_s: float = field(default_factory=time.monotonic)
    _last_line_s: float = 0.0

    def advance(self, count: int = 1, note: str = "") -> None:
        """Record `count` more units; `note` is shown beside the bar (loss, rate of success...)."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, advance=count, note=note)  # type: ignore[arg-type]
            return
        now = time.monotonic()
        if now - self._last_line_s >= _SECONDS_BETWEEN_LINES or self.done >= self.total:
            self._last_line_s = now
            self._log_line(now, note)

    def _log_line(self, now: float, note: str) -> None:
        elapsed_s = max(now - self._started_s, 1e-9)
        rate = (self.done - self.done_before) / elapsed_s
        left = f"{(self.total - self.done) / rate:.0f} s left" if rate else "just begun"
        logging.getLogger(_ROOT).info(
            "%s %d/%d %s  %.2f/s  %s  %s",
            self.title, self.done, self.total, self.unit, rate, left, note,
        )  # fmt: skip


@contextmanager
def progress(
    title: str, total: int, unit: str, *, shown: bool = True, done: int = 0
) -> Iterator[ProgressBar]:
    """Progress bar with rate and time left: a live bar on a terminal, plain lines in a log file.

    Args:
        title: what is being done.
        total: number of units to do.
        unit: what is counted, in the plural.
        shown: False on ranks that should stay silent.
        done: units done by an earlier process.
    """
    if not shown:
        yield ProgressBar(title, total, unit, done, done, _last_line_s=float("inf"))
        return
    if not sys.stderr.isatty():
        yield ProgressBar(title, total, unit, done, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")
        yield ProgressBar(title, total, unit, done, done, _bar=bar, _task=int(task))
