"""The loop over a fixed table: order, update, log, save; one for every method without rollouts."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch.distributed as dist

from megatron_reason.engine.checkpoint import Progress, load_latest, save_checkpoint
from megatron_reason.engine.guards import NonFiniteGuard, check_packing
from megatron_reason.engine.order import planned_updates, rows_of_update
from megatron_reason.engine.prepass import score_microbatches
from megatron_reason.engine.startup import Trainable
from megatron_reason.engine.update import update
from megatron_reason.errors import DataError
from megatron_reason.files import hash_file, hash_text
from megatron_reason.logs import get_logger, progress
from megatron_reason.models.build import vocab_size
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import Method, TrainState, build_method
from megatron_reason.schema.tables import Kind, read_table, table_path
from megatron_reason.tracking.base import FanOut, open_sinks
from megatron_reason.training.jobs import TrainJob

_LOG = get_logger(__name__)


@dataclass(frozen=True)
class TrainingSet:
    """The tokens table, by role."""

    frame: pl.DataFrame
    pools: Mapping[Role, list[int]]

    @classmethod
    def read(cls, folder: Path, method: Method[Any]) -> "TrainingSet":
        """Read the tokens table of `folder` and check that it has what `method` needs.

        Raises:
            DataError: a required role has no rows.
        """
        frame = read_table(folder, Kind.TOKENS).with_row_index("row")
        pools = {
            Role(key[0]): rows["row"].to_list()
            for key, rows in frame.group_by("role", maintain_order=True)
        }
        for role in method.required().roles - pools.keys():
            raise DataError(
                str(folder),
                f"method '{method.config.name}' needs sequences of role '{role}'; there are none.",
                f"Add a table with role '{role}' to the stage 'mix' that made this one.",
            )
        return cls(frame, pools)

    def check_ids(self, vocabulary: int) -> None:
        """Refuse ids that the model has no embedding for.

        Raises:
            DataError: naming the first sequence with one.
        """
        ids = pl.col("ids").list
        bad = self.frame.filter((ids.max() >= vocabulary) | (ids.min() < 0))
        if not bad.is_empty():
            raise DataError(
                f"sequence {bad['sample_id'][0]}",
                f"it and {bad.height - 1} others have token ids outside of 0..{vocabulary - 1}, "
                "the model's vocabulary.",
                "Make the table with the tokenizer of the model that is trained: run 'mix' again.",
            )

    def sample(self, row: int) -> TokenizedSample:
        """Row `row`, ready to be packed."""
        record = self.frame.row(row, named=True)
        return TokenizedSample(
            sample_id=record["sample_id"],
            role=Role(record["role"]),
            ids=tuple(record["ids"]),
            num_prompt_tokens=record["num_prompt_tokens"],
        )


def train(job: TrainJob, trainable: Trainable) -> None:
    """Run the updates that are left, from the newest checkpoint on.

    Args:
        job: what to do.
        trainable: model and optimizer, as initialised from the base model.
    """
    topology = trainable.topology
    method = build_method(job.method)
    data = TrainingSet.read(job.table, method)
    data.check_ids(vocab_size(trainable.model))
    plan = method.plan(TrainState(0, 1))
    total = planned_updates(data.pools, plan, epochs=job.train.epochs, updates=job.train.updates)
    checkpoints = job.output / "checkpoints"
    start = load_latest(trainable, checkpoints, fingerprint(job)) or Progress(
        0, {}, fingerprint(job)
    )
    if start.update == 0:
        _self_test(data, trainable)
    guard = NonFiniteGuard(job.output / "crash_report", job.train.max_nonfinite_updates)
    # One voice for the whole job; the other ranks log to nothing.
    sinks = (
        open_sinks(job.track, job.output, resume_after=start.update)
        if topology.speaks
        else FanOut(())
    )
    _LOG.info(
        "%s: %d updates, %s", job.method.name, total,
        ", ".join(f"{count} {role}" for role, count in plan.counts.items()),
    )  # fmt: skip
    with (
        closing(sinks),
        progress(f"train {job.output.name}", total, "updates", shown=topology.rank == 0) as bar,
    ):
        bar.advance(start.update)
        state = start
        while state.update < total:
            state, metrics = _one_update(job, trainable, method, data, state, total, guard)
            sinks.log(state.update, metrics)
            bar.advance(1, _note(metrics))
            if state.update % job.train.checkpoint.every == 0 or state.update == total:
                save_checkpoint(trainable, checkpoints, state, job.train.checkpoint.keep)


def fingerprint(job: TrainJob) -> dict[str, str]:
    """What must not change between a checkpoint and its continuation, hashed by name."""
    settings = job.train.model_dump(mode="json", exclude={"checkpoint"})
    return {
        "method": hash_text(job.method.model_dump_json()),
        "train section": hash_text(str(settings)),
        "table": hash_file(table_path(job.table, Kind.TOKENS)),
        "model": hash_text(job.model.model_dump_json()),
        "seed": str(job.seed),
    }


def _one_update(  # noqa: PLR0913 - the loop's whole state
    job: TrainJob, trainable: Trainable, method: Method[Any], data: TrainingSet, state: Progress,
    total: int, guard: NonFiniteGuard,
) -> tuple[Progress, dict[str, float]]:  # fmt: skip
    now = TrainState(state.update, total)
    plan = method.plan(now)
    consumed = {Role(role): count for role, count in state.consumed.items()}
    rows = rows_of_update(data.pools, plan, consumed, job.seed)
    samples = [data.sample(row) for row in rows]
    metrics = update(trainable, method, samples, now, job.train, guard)
    taken = {role: consumed.get(role, 0) + count for role, count in plan.counts.items()}
    after = {str(role): count for role, count in (consumed | taken).items()}
    return Progress(state.update + 1, after, state.fingerprint), metrics


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
