"""The loop over a fixed table, for every method without rollouts.

Not here: logging, saving and stopping (`loop.py`).
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_reason.engine.checkpoint import Progress
from megatron_reason.engine.guards import NonFiniteGuard
from megatron_reason.engine.order import planned_updates
from megatron_reason.engine.startup import Trainable
from megatron_reason.engine.update import update
from megatron_reason.errors import DataError
from megatron_reason.generation.templates import load_template
from megatron_reason.logs import get_logger
from megatron_reason.models.build import vocab_size
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import Method, TrainState, build_method
from megatron_reason.schema.topology import Topology
from megatron_reason.training.data import TrainingSet
from megatron_reason.training.jobs import TrainJob
from megatron_reason.training.loop import Loop, Noting, resume
from megatron_reason.training.preview import describe_sample, look_ahead, rate_line
from megatron_reason.training.self_test import prove_packing

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
    data = TrainingSet.read(table_of(job), method)
    data.check_ids(vocab_size(trainable.model))
    plan = method.plan(TrainState(0, 1))
    total = planned_updates(data.pools, plan, epochs=job.train.epochs, updates=job.train.updates)
    start = resume(job, trainable)
    _announce(job, method, data, trainable.topology, total)
    if start.update == 0:
        _self_test(data, trainable)
    stepper = _Offline(job, trainable, method, data, total)
    state = Loop(job, trainable, stepper, total).run(start)
    return state.update == total


@dataclass(frozen=True)
class _Offline:
    """Updates over a fixed table."""

    job: TrainJob
    trainable: Trainable
    method: Method[Any]
    data: TrainingSet
    total: int

    def open(self, state: Progress) -> Mapping[str, float]:  # noqa: ARG002 - nothing is measured
        """Nothing is measured before the first update."""
        return {}

    def step(
        self, state: Progress, guard: NonFiniteGuard, poll: Callable[[], None]
    ) -> tuple[Progress, dict[str, float]]:
        """One update on the next rows of the table."""
        del poll  # The step is short, and the loop itself polls after it.
        now = TrainState(state.update, self.total)
        plan = self.method.plan(now)
        consumed = {Role(role): count for role, count in state.consumed.items()}
        samples = self.data.next_samples(plan, consumed, self.job.seed)
        names = tuple(sample.sample_id for sample in samples)
        with Noting(self.trainable.topology.rank, state.update, names):
            metrics = update(self.trainable, self.method, samples, now, self.job.train, guard)
        taken = {role: consumed.get(role, 0) + count for role, count in plan.counts.items()}
        after = Progress(
            update=state.update + 1,
            consumed={str(role): count for role, count in (consumed | taken).items()},
            fingerprint=state.fingerprint,
            tokens=state.tokens + sum(sample.num_positions for sample in samples),
            samples=state.samples + len(samples),
        )
        counted = {
            "progress/tokens": float(after.tokens),
            "progress/samples": float(after.samples),
        }
        return after, metrics | counted

    def stored(self, state: Progress) -> Progress:
        """`state`: the table holds the rest."""
        return state


def table_of(job: TrainJob) -> Path:
    """Folder of the tokens table that `job` trains on.

    Raises:
        DataError: it names none.
    """
    if job.table is None:
        raise DataError(
            f"train {job.output.name}",
            f"method '{job.method.name}' learns from a table of tokens, and none is given.",
            "Give the variant a 'table'.",
        )
    return job.table


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
        samples = data.next_samples(method.plan(TrainState(0, total)), {}, job.seed)
        for sample in sorted(samples, key=lambda sample: sample.sample_id)[:_SAMPLES_SHOWN]:
            shown = describe_sample(sample, template, coloured=sys.stderr.isatty())
            _LOG.info("%s", shown)
    outlook = look_ahead(method, data, job.train, topology, total=total, seed=job.seed)
    _LOG.info("%s: %.1f %% of all positions are supervised", job.method.name, 100 * share)
    _LOG.info("%s", outlook.line(topology))
    _LOG.info("%s", rate_line(job.train, total))


def _self_test(data: TrainingSet, trainable: Trainable) -> None:
    """Prove that packed neighbours do not see each other, on the two shortest samples."""
    rows = data.frame["ids"].list.len().arg_sort()[:2].to_list()
    if len(rows) == 2:
        prove_packing([data.sample(row) for row in rows], trainable)
