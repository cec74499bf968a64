"""The loop over fresh rollouts: answer, grade, credit, statistics pass, updates, push.

Rank 0 holds engine and graders and sends each batch to the others. With `steps_ahead: 1` the next
prompts are answered during the updates, by weights one step old. Not here: logging, saving and
stopping (`loop.py`); what becomes of answers (`rollout`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from megatron_reason import platform
from megatron_reason.engine.checkpoint import Progress
from megatron_reason.engine.guards import NonFiniteGuard
from megatron_reason.engine.prepass import response_logprobs
from megatron_reason.engine.startup import Trainable
from megatron_reason.engine.update import update
from megatron_reason.errors import DataError, ReasonError, of_system
from megatron_reason.logs import get_logger
from megatron_reason.models.build import vocab_size
from megatron_reason.rollout.mismatch import mismatch
from megatron_reason.rollout.pools import HardPool
from megatron_reason.rollout.source import Batch, Position
from megatron_reason.rollout.weight_sync import WeightSync
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import Method, TrainState, build_method
from megatron_reason.schema.metrics import StepMetrics, as_counts
from megatron_reason.schema.topology import Topology
from megatron_reason.training.actor import Actor, acting
from megatron_reason.training.exporting import exported
from megatron_reason.training.jobs import RolloutJob, TrainJob
from megatron_reason.training.loop import Loop, Noting, is_due, resume
from megatron_reason.training.preview import rate_line
from megatron_reason.training.self_test import fixed_samples, prove_packing

T = TypeVar("T")
_LOG = get_logger(__name__)
_POLICY = "policy"
_LONGEST_STEP = timedelta(days=2)
"""How long the other ranks wait for rank 0, whose engine has deadlines of its own."""


def train_online(job: TrainJob, rollout: RolloutJob, trainable: Trainable) -> bool:
    """Run the updates that are left, from the newest checkpoint on.

    Args:
        job: what to do.
        rollout: how rollouts are made.
        trainable: model and optimizer, as initialised from the base model.

    Returns:
        Whether all updates are made; False where `job.stop_after` ended the work before.

    Raises:
        StoppedError: a signal asked to stop; a checkpoint has been written.
        ReasonError: what rank 0 could not go on with, on every rank.
    """
    assert job.train.updates is not None, "a run that counts epochs was refused at load"
    start = resume(job, trainable)
    weights = exported(job, trainable, job.output / _POLICY)
    weights.write()
    method = build_method(job.method)
    _announce(job, rollout, method, trainable.topology)
    if start.update == 0:
        prove_packing(fixed_samples(weights.folder), trainable)
    tell = Announcer(trainable.topology)
    scope = acting(job, rollout, weights=weights.folder, vocabulary=vocab_size(trainable.model))
    with ExitStack() as stack:
        actor = _opened(scope, stack, tell)
        tell(lambda: _resume_ahead(actor, start))
        stepper = Online(
            job=job,
            rollout=rollout,
            trainable=trainable,
            method=method,
            sync=WeightSync(
                trainable.model.module,
                weights.folder,
                topology=trainable.topology,
                engine=None if actor is None else actor.engine,
                config=rollout.settings.sync,
            ),
            actor=actor,
            tell=tell,
        )
        end = Loop(job, trainable, stepper, job.train.updates).run(start)
    return end.update == job.train.updates


def _announce(job: TrainJob, rollout: RolloutJob, method: Method[Any], topology: Topology) -> None:
    """Say what will be done, before any of it is."""
    assert job.train.updates is not None, "a run that counts epochs was refused at load"
    if topology.rank:
        return
    plan = method.plan(TrainState(0, job.train.updates))
    settings = rollout.settings
    stored = "".join(f" and {count} stored {role}s" for role, count in plan.counts.items())
    _LOG.info(
        "%s: %d updates, each of %d prompts x %d rollouts of at most %d tokens%s; updates from one "
        "batch of rollouts: %d; batches begun while others are learnt from: %d",
        job.method.name, job.train.updates, plan.prompts, plan.rollouts_per_prompt,
        settings.max_tokens, stored, settings.updates_per_step, settings.steps_ahead,
    )  # fmt: skip
    _LOG.info("%s", rate_line(job.train, job.train.updates))


class Announcer:
    """Gives every rank what rank 0 found, errors included."""

    def __init__(self, topology: Topology) -> None:
        self._speaks = topology.rank == 0
        self._group: ProcessGroup | None = None
        if topology.world_size > 1:
            # Through host memory, and with a patience of its own: the others wait for the engine.
            group = dist.new_group(backend="gloo", timeout=_LONGEST_STEP)
            self._group = cast(ProcessGroup, group)

    def __call__(self, find: Callable[[], T]) -> T:
        """What `find` returns on rank 0, on every rank; elsewhere it is not called.

        Raises:
            ReasonError: on every rank, if `find` raises it or an OSError on rank 0.
        """
        box: list[Any] = [None, None]
        if self._speaks:
            try:
                box[0] = find()
            except ReasonError as error:
                box[1] = error
            except OSError as error:
                box[1] = of_system(error)
                box[1].__cause__ = error
        if self._group is not None:
            dist.broadcast_object_list(box, src=0, group=self._group)
        if box[1] is not None:
            box[1].on_every_rank = True
            raise box[1]
        return box[0]


def _opened(
    scope: AbstractContextManager[Actor], stack: ExitStack, tell: Announcer
) -> Actor | None:
    """The actor on rank 0, opened on `stack`; None elsewhere."""
    opened: list[Actor] = []
    tell(lambda: opened.append(stack.enter_context(scope)))
    return opened[0] if opened else None


def _resume_ahead(actor: Actor | None, start: Progress) -> None:
    if actor is not None and start.ahead:
        actor.resume(start.ahead)
        _LOG.info("the next rollouts were made before the checkpoint, and are in it")


@dataclass(frozen=True)
class Online:
    """Updates from fresh rollouts."""

    job: TrainJob
    rollout: RolloutJob
    trainable: Trainable
    method: Method[Any]
    sync: WeightSync
    actor: Actor | None
    """On rank 0; None elsewhere."""
    tell: Announcer

    def open(self, state: Progress) -> Mapping[str, float]:
        """Prove that engine and trainer agree; what the monitor says before the first update."""
        self.sync.push(state.update)
        return self._measured(state.update) if state.update == 0 else {}

    def step(
        self, state: Progress, guard: NonFiniteGuard, poll: Callable[[], None]
    ) -> tuple[Progress, dict[str, float]]:
        """One batch of rollouts and the updates made from it."""
        started = time.perf_counter()
        actor = self._actor
        batch = self._made(lambda: actor().batch(_position(state), version=state.update))
        received = time.perf_counter()
        # A checkpoint that was written beside the rollouts counts from here on.
        poll()
        begun = time.perf_counter()
        is_ahead = bool(self.rollout.settings.steps_ahead)
        goes_on = batch.after.update < self._total
        if is_ahead and goes_on and self.actor is not None:
            self.actor.go_ahead(batch.after, version=state.update)
        self.tell(lambda: actor().rest())
        updates, prepass_s = self._with_logprobs(batch)
        metrics = StepMetrics()
        for index, samples in enumerate(updates):
            made = self._update(state, index, samples, guard)
            prepass_s += made.get("time/prepass", 0.0)
            metrics.merge(as_counts(made))
        trained = time.perf_counter()
        if is_ahead:
            # From here on the engine is idle, and may take other weights.
            self.tell(lambda: actor().wait())
        waited = time.perf_counter()
        self._make_room()
        self.tell(lambda: actor().rouse())
        report = self.sync.push(batch.after.update)
        values = metrics.means() | batch.metrics.means() | logprob_gap(updates) | report.metrics()
        after = self._advanced(state, batch, updates)
        monitor = self.rollout.settings.monitor
        if monitor is not None and is_due(monitor.every, state.update, after.update):
            values |= self._measured(after.update)
        return after, values | {
            "rollout/staleness": float(state.update - batch.version),
            "time/prepass": prepass_s,
            "time/train": trained - begun - prepass_s,
            "time/wait": received - started + waited - trained,
            "time/step": time.perf_counter() - started,
            "progress/tokens": float(after.tokens),
            "progress/samples": float(after.samples),
            "progress/prompts": float(after.prompts),
            "pool/hard": float(len(after.hard)),
        }

    def stored(self, state: Progress) -> Progress:
        """`state` with the rollouts that were made ahead."""
        return state if self.actor is None else replace(state, ahead=self.actor.made_ahead())

    @property
    def _total(self) -> int:
        assert self.job.train.updates is not None, "a run that counts epochs was refused at load"
        return self.job.train.updates

    def _actor(self) -> Actor:
        assert self.actor is not None, "only rank 0 has one, and only rank 0 asks"
        return self.actor

    def _make_room(self) -> None:
        """Have all ranks let go of what the updates needed before an engine that slept wakes."""
        if self.rollout.engine.sleep_mode:
            platform.release_memory()
            dist.barrier()

    def _measured(self, after: int) -> dict[str, float]:
        if self.rollout.settings.monitor is None:
            return {}
        started = time.perf_counter()
        found = self._made(lambda: self._actor().measure(after))
        return found | {"time/eval": time.perf_counter() - started}

    def _made(self, find: Callable[[], T]) -> T:
        """What `find` has the engine make on rank 0, on every rank.

        An engine that dies meanwhile is started again and gets the weights of the last push.
        """
        found = self.sync.run(lambda _: find())
        return self.tell(lambda: cast(T, found))

    def _with_logprobs(self, batch: Batch) -> tuple[list[list[TokenizedSample]], float]:
        """The updates, their rollouts with log-probs of the policy that is about to be changed."""
        started = time.perf_counter()
        filled: list[list[TokenizedSample]] = []
        for samples in batch.updates:
            if not any(sample.role == Role.ROLLOUT for sample in samples):
                filled.append([*samples])
                continue
            logprobs = response_logprobs(
                self.trainable.model, samples, self.job.train.batch, self.trainable.topology,
                temperature=self.method.temperature,
            )  # fmt: skip
            filled.append(
                [
                    replace(sample, old_logprobs=own) if sample.role == Role.ROLLOUT else sample
                    for sample, own in zip(samples, logprobs, strict=True)
                ]
            )
        return filled, time.perf_counter() - started

    def _update(
        self, state: Progress, index: int, samples: Sequence[TokenizedSample],
        guard: NonFiniteGuard,
    ) -> dict[str, float]:  # fmt: skip
        if not samples:
            return {}
        now = TrainState(state.update + index, self._total, len(state.hard), self.job.seed)
        names = tuple(sample.sample_id for sample in samples)
        with Noting(self.trainable.topology.rank, now.update, names):
            return update(self.trainable, self.method, samples, now, self.job.train, guard)

    def _advanced(
        self, state: Progress, batch: Batch, updates: Sequence[Sequence[TokenizedSample]]
    ) -> Progress:
        """The state after the updates.

        Raises:
            DataError: too many steps in a row without anything to learn from.
        """
        samples = [sample for part in updates for sample in part]
        empty = 0 if samples else state.empty_steps + 1
        if empty >= (most := self.rollout.settings.max_empty_steps):
            raise DataError(
                f"update {batch.after.update}",
                f"in {most} steps in a row no prompt gave anything to learn from: "
                f"{batch.metrics.means()}.",
                "Look at the rollouts in 'rollouts': if all rewards are equal the problems are too "
                "hard, too easy, or the reward does not understand the answers.",
            )
        return replace(
            state,
            update=batch.after.update,
            consumed={str(role): count for role, count in batch.after.consumed.items()},
            tokens=state.tokens + sum(sample.num_positions for sample in samples),
            samples=state.samples + len(samples),
            prompts=batch.after.prompts,
            hard=batch.after.hard.problem_ids,
            empty_steps=empty,
            metrics={},
            ahead="",
        )


def logprob_gap(updates: Sequence[Sequence[TokenizedSample]]) -> dict[str, float]:
    """How far the engine's log-probs are from the trainer's; nothing without rollouts."""
    pairs = [
        (sample.old_logprobs, sample.rollout_logprobs)
        for samples in updates
        for sample in samples
        if sample.old_logprobs is not None and sample.rollout_logprobs is not None
    ]
    if not pairs:
        return {}
    trainer_T, engine_T = (
        torch.tensor([value for side in sides for value in side])
        for sides in zip(*pairs, strict=True)
    )
    return mismatch(trainer_T, engine_T).metrics()


def _position(state: Progress) -> Position:
    consumed = {Role(role): count for role, count in state.consumed.items()}
    return Position(state.update, state.prompts, HardPool(tuple(state.hard)), consumed)
