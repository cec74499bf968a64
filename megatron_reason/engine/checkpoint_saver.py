"""Saving a training run while it goes on: gathered by all ranks, written beside the updates.

A save begins with what needs every rank (who stores what, the optimizer's states by parameter) and
goes on in one process per rank; it ends at some later update with the sums and the rename that make
it visible. One save is under way at a time. Not here: what is stored and how it is loaded
(`checkpoint.py`), the writing (`checkpoint_writer.py`), files and names (`checkpoint_folder.py`).
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from torch.distributed.checkpoint.api import CheckpointException

from megatron_reason.config.train import CheckpointConfig
from megatron_reason.engine import checkpoint_folder as files
from megatron_reason.engine.checkpoint import (
    Progress,
    checkpoint_bytes,
    everywhere,
    stored_state,
    train_state,
)
from megatron_reason.engine.checkpoint_writer import (
    CheckpointWriter,
    hand_over,
    keep_results_in_process,
)
from megatron_reason.engine.startup import Trainable
from megatron_reason.errors import CheckpointError, ReasonError
from megatron_reason.files import write_json, write_text
from megatron_reason.logs import get_logger

_LOG = get_logger(__name__)
_JOB = "job.json"


@dataclass
class _Pending:
    """A save under way."""

    update: int
    state: dict[str, Any]
    ahead: str
    request: AsyncRequest
    writer: CheckpointWriter
    begun: float
    blocked_s: float


class CheckpointSaver:
    """Writes checkpoints of one run; all ranks make the same calls in the same order.

    As a context manager it waits for the save under way, also when an error passes that every rank
    has; when one passes that only this rank may have, it drops the save.

    Args:
        trainable: model and optimizer.
        folder: the run's `checkpoints` folder, shared by all ranks.
        config: which checkpoints stay, whether they are to fit other layouts, and whether training
            goes on while they are written.
        job: the settings of the run, as JSON.
    """

    def __init__(
        self, trainable: Trainable, folder: Path, config: CheckpointConfig, job: str
    ) -> None:
        self._trainable = trainable
        self._folder = folder
        self._config = config
        self._job = job
        self._pending: _Pending | None = None
        self._waited_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        elif isinstance(error, ReasonError) and error.on_every_rank:
            try:
                self.finish()
            except CheckpointError as unwritten:
                error.add_note(str(unwritten))
        elif self._pending is not None:
            self._pending.writer.cancel()

    def begin(self, progress: Progress) -> None:
        """Save the state as it is now; what is trained after this call does not change it.

        Waits for the save before. The checkpoint is visible only when it is whole and on the disk.

        Raises:
            CheckpointError: no room for it, or the save before could not be written.
        """
        self.finish()
        begun = time.perf_counter()
        trainable, is_first = self._trainable, self._trainable.topology.rank == 0
        files.require_space(self._folder, checkpoint_bytes(trainable))
        partial = files.partial_of(self._folder, progress.update)
        dist.barrier()
        keep_results_in_process()
        tensors = stored_state(trainable, portable=self._config.portable)
        try:
            if is_first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            dist.barrier()
            request = dist_checkpointing.save(tensors, str(partial), async_sharded_save=True)
        except (OSError, RuntimeError) as error:
            # torch makes a RuntimeError of a full disk, and of a peer that has gone as well.
            if (refusal := files.refusal(self._folder)) is None:
                raise
            shutil.rmtree(partial, ignore_errors=True)
            raise files.unwritten(self._folder, refusal) from error
        assert request is not None, "an asynchronous save returns what is to be done"
        writer = CheckpointWriter(request)
        state = train_state(trainable, progress, portable=self._config.portable)
        blocked_s = time.perf_counter() - begun
        self._waited_s += blocked_s
        self._pending = _Pending(
            progress.update, state, progress.ahead, request, writer, begun, blocked_s
        )
        if not self._config.asynchronous:
            self.finish()

    def poll(self) -> None:
        """Complete the save under way if every rank has written its part; else return at once.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._pending is None:
            return
        done = torch.tensor(self._pending.writer.is_done(), dtype=torch.int32)
        done = done.to(self._trainable.device)
        dist.all_reduce(done, op=dist.ReduceOp.MIN)
        if done.item():
            self.finish()

    def finish(self) -> None:
        """Wait for the save under way, if there is one, and make it visible.

        Raises:
            CheckpointError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        waiting = time.perf_counter()
        written = pending.writer.wait()
        hand_over(written)
        partial = files.partial_of(self._folder, pending.update)
        dist.barrier()
        is_first = self._trainable.topology.rank == 0
        try:
            for finalize in pending.request.finalize_fns:
                finalize()
            parts = everywhere(written.sums, self._trainable.topology.world_size)
            if is_first:
                self._publish(pending, {name: s for part in parts for name, s in part.items()})
        except (CheckpointException, OSError) as error:
            # Every rank gets the first, whichever could not write; rank 0 alone writes the rest.
            shutil.rmtree(partial, ignore_errors=True)
            raise files.unwritten(self._folder, error) from error
        if is_first:
            target = files.target_of(self._folder, pending.update)
            now = time.perf_counter()
            size = sum(path.stat().st_size for path in target.iterdir())
            _LOG.info(
                "saved %s: %.2f GB in %.1f s, %.1f s of them beside training", target.name,
                size / 1e9, now - pending.begun, waiting - pending.begun - pending.blocked_s,
            )  # fmt: skip
            files.retire(self._folder, self._config.keep)
        dist.barrier()
        self._waited_s += time.perf_counter() - waiting

    def take_waited(self) -> dict[str, float]:
        """Metric of the seconds for which training waited for saves since this was taken last.

        Empty where it did not wait: no save was begun or completed.
        """
        waited_s, self._waited_s = self._waited_s, 0.0
        return {"time/save": waited_s} if waited_s else {}

    def _publish(self, pending: _Pending, sums: dict[str, tuple[int, int]]) -> None:
        partial = files.partial_of(self._folder, pending.update)
        write_json(partial / files.STATE, pending.state)
        write_text(partial / _JOB, self._job)
        if pending.ahead:
            write_text(partial / files.AHEAD, pending.ahead)
        rest = [path for path in partial.iterdir() if path.name not in sums]
        write_json(partial / files.SUMS, sums | files.sums_of(rest, durable=True))
        target = files.target_of(self._folder, pending.update)
        files.publish(partial, target, pending.update)
