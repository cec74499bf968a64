"""What both loops share: log, save, stop; a step is whatever the loop in question makes of it.

Not here: the steps (`offline.py`, `online.py`).
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from megatron_reason.engine.checkpoint import (
    Progress,
    checkpoint_bytes,
    load_latest,
)
from megatron_reason.engine.checkpoint_folder import require_space
from megatron_reason.engine.checkpoint_saver import CheckpointSaver
from megatron_reason.engine.guards import NonFiniteGuard
from megatron_reason.engine.startup import Trainable
from megatron_reason.errors import StoppedError
from megatron_reason.files import hash_file, hash_text
from megatron_reason.logs import progress
from megatron_reason.schema.metrics import MEASURED, StepMetrics, as_counts
from megatron_reason.schema.tables import Kind, table_path
from megatron_reason.tracking.base import FanOut, open_sinks
from megatron_reason.tracking.jsonl import PLANNED
from megatron_reason.training.jobs import TrainJob
from megatron_reason.training.stopping import stop_wish

CHECKPOINTS = "checkpoints"
_SHOWN = {"reward/mean": "reward", "train/loss": "loss", "train/grad_norm": "grad_norm"}
_TIMES = ("rollout", "grade", "prepass", "train", "wait", "sync", "eval", "save")


class Stepper(Protocol):
    """One of the two loops."""

    def open(self, state: Progress) -> Mapping[str, float]:
        """What is measured before the first step."""
        ...

    def step(
        self, state: Progress, guard: NonFiniteGuard, poll: Callable[[], None]
    ) -> tuple[Progress, dict[str, float]]:
        """Make at least one update.

        Args:
            state: before it.
            guard: against gradients that are not finite.
            poll: to be called by all ranks at once amid a long step: completes a save under way.

        Returns:
            The new state and metrics, on every rank.
        """
        ...

    def stored(self, state: Progress) -> Progress:
        """`state` with what only a checkpoint of it needs."""
        ...


@dataclass(frozen=True)
class Loop:
    """What stays the same from step to step."""

    job: TrainJob
    trainable: Trainable
    stepper: Stepper
    total: int
    """Updates of the whole run."""

    def run(self, start: Progress) -> Progress:
        """Steps from `start` to the last, or to where somebody wants to stop.

        Raises:
            StoppedError: a signal asked to stop; a checkpoint has been written.
        """
        topology = self.trainable.topology
        guard = NonFiniteGuard(
            self.job.output / "crash_report", self.job.train.max_nonfinite_updates,
            writes=topology.rank == 0,
        )  # fmt: skip
        # What was measured before the first update is measured anew where it is made anew.
        last_logged = start.update or -1
        # One voice for the whole job; the other ranks log to nothing.
        sinks = (
            open_sinks(self.job.track, self.job.output, resume_after=last_logged)
            if topology.speaks
            else FanOut(())
        )
        bar_of = partial(progress, f"train {self.job.output.name}", self.total, "updates")
        with (
            closing(sinks),
            stop_wish() as wish,
            bar_of(shown=topology.rank == 0, done=start.update) as bar,
            self._saver() as saver,
        ):
            if opening := self.stepper.open(start):
                sinks.log(start.update, opening)
            state, means, signalled = start, StepMetrics(), None
            while state.update < self.total:
                before = state.update
                state, metrics = self.stepper.step(state, guard, saver.poll)
                saver.poll()
                metrics |= saver.take_waited()
                means.merge(as_counts(metrics))
                sinks.log(state.update, {**metrics, PLANNED: float(self.total)})
                bar.advance(state.update - before, _note(metrics))
                signalled = wish.agreed(self.trainable.device)
                leaves = signalled is not None or self._stops_between(before, state.update)
                if leaves or self._saves_between(before, state.update):
                    state = replace(state, metrics=_of_checkpoint(means, metrics))
                    saver.begin(self.stepper.stored(state))
                    means = StepMetrics()
                if leaves and state.update < self.total:
                    break
        if signalled is not None and state.update < self.total:
            raise StoppedError(
                f"train {self.job.output.name}",
                f"stopped by {signalled.name} after update {state.update} of {self.total}, which "
                "is saved.",
                "The same command goes on from there.",
            )
        return state

    def _saves_between(self, before: int, after: int) -> bool:
        return is_due(self.job.train.checkpoint.every, before, after) or after == self.total

    def _stops_between(self, before: int, after: int) -> bool:
        # A step may make several updates, and so pass the one to stop after.
        stop = self.job.stop_after
        return stop is not None and before < stop <= after

    def _saver(self) -> CheckpointSaver:
        return CheckpointSaver(
            self.trainable, self.job.output / CHECKPOINTS, self.job.train.checkpoint,
            self.job.model_dump_json(indent=2),
        )  # fmt: skip


def resume(job: TrainJob, trainable: Trainable) -> Progress:
    """Where the run goes on, its newest checkpoint loaded; the beginning where there is none.

    Raises:
        CheckpointError: no room for further checkpoints, one of a run with other settings, or
            nothing but damaged ones.
    """
    folder, identity = job.output / CHECKPOINTS, fingerprint(job)
    require_space(folder, checkpoint_bytes(trainable))
    return load_latest(trainable, folder, identity) or Progress(0, {}, identity)


def fingerprint(job: TrainJob) -> dict[str, str]:
    """What must not change between a checkpoint and its continuation, hashed by name."""
    # Neither the layout nor the packing changes the loss.
    settings = job.train.model_dump(mode="json", exclude={"checkpoint", "parallel", "batch"})
    found = {
        "method": hash_text(job.method.model_dump_json()),
        "train section": hash_text(str(settings)),
        # What a later version adds must not part a run from its checkpoints.
        "model": hash_text(job.model.model_dump_json(exclude_defaults=True)),
        "seed": str(job.seed),
    }
    if job.template is not None:
        found["template"] = hash_text(job.template.model_dump_json(exclude_defaults=True))
    if job.table is not None:
        found["table"] = hash_file(table_path(job.table, Kind.TOKENS))
    if (rollout := job.rollout) is not None:
        problems = [path for kind in (Kind.PROBLEMS, Kind.SAMPLES)
                    if (path := table_path(rollout.problems, kind)).is_file()]  # fmt: skip
        found["rollout section"] = hash_text(str(rollout.settings.decisive()))
        found["problems"] = hash_text(" ".join(map(hash_file, problems)))
        found["engine"] = hash_text(f"{rollout.engine.name} {rollout.engine.max_model_len}")
    return found


def _of_checkpoint(means: StepMetrics, last: Mapping[str, float]) -> dict[str, float]:
    """What a checkpoint is judged by: means since the one before, and what was measured of it."""
    found = {name: mean for name, mean in means.means().items() if not name.startswith(MEASURED)}
    return found | {name: value for name, value in last.items() if name.startswith(MEASURED)}


def is_due(every: int, before: int, after: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return after // every > before // every


@dataclass(frozen=True)
class Noting:
    """Adds to an exception where the run was when it came."""

    rank: int
    update: int
    sample_ids: tuple[str, ...]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            names = ", ".join(self.sample_ids)
            error.add_note(f"rank {self.rank}, update {self.update + 1}, sequences {names}")


def _note(metrics: Mapping[str, float]) -> str:
    shown = [f"{word} {metrics[name]:.4g}" for name, word in _SHOWN.items() if name in metrics]
    parts = [f"{n} {metrics[f'time/{n}']:.1f}" for n in _TIMES if f"time/{n}" in metrics]
    line = f" ({', '.join(parts)})" if parts else ""
    return "  ".join([*shown, f"{metrics['time/step']:.1f} s{line}"])
