"""`metrics.jsonl`: one JSON object a line, flushed as it is written; what reports are made from.

Numbers that JSON has no words for are written as the texts "nan", "inf" and "-inf", and read back
as numbers. Not here: other destinations of metrics (`tensorboard.py`, `wandb.py`).
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from megatron_reason.errors import DataError
from megatron_reason.files import write_text

METRICS = "metrics.jsonl"
PLANNED = "progress/updates"
"""Metric that is the same in every line: the updates of the whole training."""


class JsonlSink:
    """Appends lines {"step": ..., "time": seconds since 1970, <metric>: <value>, ...}."""

    def __init__(self, path: Path, *, resume_after: int = 0) -> None:
        truncate_after(path, resume_after)
        self._stream = path.open("a", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        self._stream.write(_line({"step": step, "time": time.time(), **values}))
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def truncate_after(path: Path, step: int) -> None:
    """Leave only whole lines of steps up to `step`, atomically; makes the file if there is none.

    Raises:
        DataError: a line, other than an unfinished last one, that is no line of metrics.
    """
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    write_text(path, "".join(_line(row) for row in kept))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics file, in order; none if there is no file.

    A last line without its end is left out: its writer was killed in the middle of it.

    Raises:
        DataError: any other line is not a JSON object of numbers with a step.
    """
    if not path.is_file():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    rows: list[dict[str, float]] = []
    for number, line in enumerate(whole, start=1):
        try:
            values = {name: float(value) for name, value in json.loads(line).items()}
            rows.append({**values, "step": int(values["step"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}:{number}",
                f"not a line of metrics: {line[:80].decode(errors='replace')!r}.",
                "Remove the line, or the file.",
            ) from error
    return rows


def _line(row: Mapping[str, float]) -> str:
    values = {name: v if math.isfinite(v) else str(float(v)) for name, v in row.items()}
    return json.dumps(values) + "\n"
