"""TensorBoard sink, through TensorBoard's own event writer and without torch.

Not here: reading events back; `metrics.jsonl` has the same numbers.
"""

import time
from collections.abc import Mapping
from pathlib import Path

# Protobuf makes these classes as they are imported, where a type checker does not see them.
from tensorboard.compat.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboard.compat.proto.summary_pb2 import (
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboard.summary.writer.event_file_writer import EventFileWriter

_SECONDS_BETWEEN_FLUSHES = 10


class TensorBoardSink:
    """One scalar per metric; metric names become tags, whose first part groups the charts."""

    def __init__(self, folder: Path, *, resume_after: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder), flush_secs=_SECONDS_BETWEEN_FLUSHES)
        # TensorBoard forgets what earlier files say about steps from here on.
        restart = SessionLog(status=SessionLog.START)
        event = Event(wall_time=time.time(), step=resume_after + 1, session_log=restart)
        self._writer.add_event(event)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one scalar per metric."""
        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()
