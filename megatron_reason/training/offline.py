"""The loop over a fixed table: order, update, log, save; one for every method without rollouts."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.distributed as dist

from megatron_reason.engine.checkpoint import (
    Progress,
    checkpoint_bytes,
    load_latest,
)
from megatron_reason.engine.checkpoint_folder import require_space
from megatron_reason.engine.checkpoint_saver import CheckpointSaver
from megatron_reason.engine.guards import NonFiniteGuard, check_packing
from megatron_reason.engine.order import planned_updates, rows_of_update
from megatron_reason.engine.prepass import score_microbatches
from megatron_reason.engine.startup import Trainable
from megatron_reason.engine.update import update
from megatron_reason.errors import StoppedError
from megatron_reason.files import hash_file, hash_text
from megatron_reason.generation.templates import load_template
from megatron_reason.logs import get_logger, progress
from megatron_reason.models.build import vocab_size
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import Method, TrainState, build_method
from megatron_reason.schema.metrics import StepMetrics, as_counts
from megatron_reason.schema.tables import Kind, table_path
from megatron_reason.schema.topology import Topology
from megatron_reason.tracking.base import FanOut, open_sinks
from megatron_reason.training.data import TrainingSet
from megatron_reason.training.jobs import TrainJob
from megatron_reason.training.preview import describe_sample, look_ahead, rate_line
from megatron_reason.training.stopping import stop_wish

_SAMPLES_SHOWN = 3
_LOG = get_logger(__name__)


def train(job: TrainJob, trainable: Trainable) -> bool:
    """Run the updates that are left, from the newest checkpoint on.

    Args:
        job: what to do.
        trainable: model and optimizer, as initialised from the base model.

    Returns:
        Whether all updates are made; False where `job.stop_after` ended the work before.

    Raises:
        StoppedError: a signal asked to stop; a checkpoint has been written.
    """
    method = build_method(job.method)
    data = TrainingSet.read(job.table, method)
    data.check_ids(vocab_size(trainable.model))
    plan = method.plan(TrainState(0, 1))
    total = planned_updates(data.pools, plan, epochs=job.train.epochs, updates=job.train.updates)
    checkpoints = job.output / "checkpoints"
    require_space(checkpoints, checkpoint_bytes(trainable))
    start = load_latest(trainable, checkpoints, fingerprint(job)) or Progress(
        0, {}, fingerprint(job)
    )
    _announce(job, method, data, trainable.topology, total)
    if start.update == 0:
        _self_test(data, trainable)
    state = _Loop(job, trainable, method, data, total).run(start)
    return state.update == total


@dataclass(frozen=True)
class _Loop:
    """What stays the same from update to update."""

    job: TrainJob
    trainable: Trainable
    method: Method[Any]
    data: TrainingSet
    total: int

    def run(self, start: Progress) -> Progress:
        """Updates from `start` to the last, or to where somebody wants to stop."""
        topology = self.trainable.topology
        guard = NonFiniteGuard(
            self.job.output / "crash_report", self.job.train.max_nonfinite_updates,
            writes=topology.rank == 0,
        )  # fmt: skip
        # One voice for the whole job; the other ranks log to nothing.
        sinks = (
            open_sinks(self.job.track, self.job.output, resume_after=start.update)
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
            state, means, signalled = start, StepMetrics(), None
            while state.update < self.total:
                state, metrics = self._update(state, guard)
                saver.poll()
                means.merge(as_counts(metrics))
                sinks.log(state.update, metrics)
                bar.advance(1, _note(metrics))
                signalled = wish.agreed(self.trainable.device)
                leaves = signalled is not None or state.update == self.job.stop_after
                if leaves or self._saves_after(state.update):
                    state = replace(state, metrics=means.means())
                    saver.begin(state)
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

    def _saves_after(self, update: int) -> bool:
        return update % self.job.train.checkpoint.every == 0 or update == self.total

    def _saver(self) -> CheckpointSaver:
        return CheckpointSaver(
            self.trainable, self.job.output / "checkpoints", self.job.train.checkpoint,
            self.job.model_dump_json(indent=2),
        )  # fmt: skip

    def _update(self, state: Progress, guard: NonFiniteGuard) -> tuple[Progress, dict[str, float]]:
        now = TrainState(state.update, self.total)
        plan = self.method.plan(now)
        consumed = {Role(role): count for role, count in state.consumed.items()}
        rows = rows_of_update(self.data.pools, plan, consumed, self.job.seed)
        samples = [self.data.sample(row) for row in rows]
        with _Noting(self.trainable.topology.rank, state.update, samples):
            metrics = update(self.trainable, self.method, samples, now, self.job.train, guard)
        taken = {role: consumed.get(role, 0) + count for role, count in plan.counts.items()}
        after = Progress(
            update=state.update + 1,
            consumed={str(role): count for role, count in (consumed | taken).items()},
            fingerprint=state.fingerprint,
            tokens=state.tokens + sum(sample.num_positions for sample in samples),
        )
        return after, metrics | {"progress/tokens": float(after.tokens)}


def fingerprint(job: TrainJob) -> dict[str, str]:
    """What must not change between a checkpoint and its continuation, hashed by name."""
    # Neither the layout nor the packing changes the loss.
    settings = job.train.model_dump(mode="json", exclude={"checkpoint", "parallel", "batch"})
    return {
        "method": hash_text(job.method.model_dump_json()),
        "train section": hash_text(str(settings)),
        "table": hash_file(table_path(job.table, Kind.TOKENS)),
        "model": hash_text(job.model.model_dump_json()),
        "seed": str(job.seed),
    }


@dataclass(frozen=True)
class _Noting:
    """Adds to an exception where the run was when it came."""

    rank: int
    update: int
    samples: Sequence[TokenizedSample]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            names = ", ".join(sample.sample_id for sample in self.samples)
            error.add_note(f"rank {self.rank}, update {self.update + 1}, sequences {names}")


def _announce(
    job: TrainJob, method: Method[Any], data: TrainingSet, topology: Topology, total: int
) -> None:
    """Say what will be done, before any of it is; refuse what cannot be meant."""
    share = data.supervised_share()
    if topology.rank:
        return
    if job.template is not None:
        template = load_template(job.template, job.model_folder)
        data.check_template(template.hash)
        rows = rows_of_update(data.pools, method.plan(TrainState(0, total)), {}, job.seed)
        for row in sorted(rows, key=lambda row: data.sample(row).sample_id)[:_SAMPLES_SHOWN]:
            shown = describe_sample(data.sample(row), template, coloured=sys.stderr.isatty())
            _LOG.info("%s", shown)
    outlook = look_ahead(method, data, job.train, topology, total=total, seed=job.seed)
    _LOG.info("%s: %.1f %% of all positions are supervised", job.method.name, 100 * share)
    _LOG.info("%s", outlook.line(topology))
    _LOG.info("%s", rate_line(job.train, total))


def _self_test(data: TrainingSet, trainable: Trainable) -> None:
    """Prove that packed neighbours do not see each other, on two short samples."""
    lengths = data.frame["ids"].list.len()
    rows = lengths.arg_sort()[:2].to_list()
    if len(rows) < 2:
        return
    samples = [data.sample(row) for row in rows]
    topology = trainable.topology

    def score(microbatches: list[list[TokenizedSample]]) -> list[list[float]]:
        scores = score_microbatches(trainable.model, microbatches, topology)
        return [[sequence.logprob_sum for sequence in batch] for batch in scores]

    if topology.is_last_stage:
        worst = check_packing(score, samples, next(trainable.model.parameters()).dtype)
        _LOG.info("packing self-test: %.1e nats per token between alone and packed", worst)
    else:
        score([[samples[0]], samples, samples[::-1]])
    dist.barrier()


def _note(metrics: Mapping[str, float]) -> str:
    shown = {name: metrics[name] for name in ("train/loss", "train/grad_norm") if name in metrics}
    words = [f"{name.removeprefix('train/')} {value:.4g}" for name, value in shown.items()]
    return "  ".join([*words, f"{metrics['time/step']:.1f} s"])
