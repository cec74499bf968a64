"""One optimizer update, from samples to metrics: the same for SFT and for RL."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_reason import platform
from megatron_reason.config.train import BatchConfig, OptimConfig, TrainConfig
from megatron_reason.engine.aggregation import global_counts, means_of
from megatron_reason.engine.flops import flops_of, rates
from megatron_reason.engine.forward import Head, LossSpec, training_step
from megatron_reason.engine.frozen import PASSES, Models, fill_frozen
from megatron_reason.engine.guards import NonFiniteGuard
from megatron_reason.engine.optim import learning_rate, set_step
from megatron_reason.engine.packing import microbatches_of_rank
from megatron_reason.engine.startup import Trainable
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.models.build import vocab_size
from megatron_reason.schema.batch import PackedBatch, TokenizedSample
from megatron_reason.schema.method import Method, Term, TrainState, UpdatePlan
from megatron_reason.schema.metrics import StepMetrics
from megatron_reason.schema.topology import Topology


def update(
    trainable: Trainable, method: Method[Any], samples: Sequence[TokenizedSample],
    state: TrainState, train: TrainConfig, guard: NonFiniteGuard,
) -> dict[str, float]:  # fmt: skip
    """Make one update over the global batch `samples` (the same list on every rank).

    Returns:
        Metrics by name, on every rank.

    Raises:
        NumericsError: too many updates in a row had non-finite gradients.
    """
    started = time.perf_counter()
    topology = trainable.topology
    terms, merged = accumulate(trainable, method, samples, state, train.batch)
    stepped = _step(trainable, train.optim, guard, state, method.plan(state), samples)
    num_tokens = sum(sample.num_positions for sample in samples)
    seconds = time.perf_counter() - started
    flops = flops_of(trainable.model.config, vocab_size(trainable.model), samples)
    metrics = merged.means()
    if topology.is_last_stage:
        metrics |= means_of(terms, merged)
    return _from_last_stage(metrics, topology) | {
        **stepped,
        "train/nonfinite_skipped": float(guard.skipped),
        "perf/tokens_per_s": num_tokens / seconds,
        **rates(flops, seconds, trainable.model.config),
        "perf/peak_mem_gb": _largest(platform.peak_memory_gb()),
        "time/step": seconds,
    }


def _largest(value: float) -> float:
    """The largest of all ranks' values."""
    largest = torch.tensor(value, dtype=torch.float64, device=platform.device())
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return float(largest)


def check_batch(samples: Sequence[TokenizedSample], state: TrainState) -> None:
    """Refuse a global batch that cannot be trained on, on every rank alike.

    Raises:
        DataError: no supervised token at all, or a constant that is not finite.
    """
    where = f"update {state.update + 1}"
    if not any(sample.num_targets > 0 for sample in samples):
        raise DataError(
            where,
            f"none of its {len(samples)} sequences has a token to learn from.",
            "Check num_prompt_tokens in the table: it must be below the number of ids.",
        )
    for sample in samples:
        recorded = (*(sample.old_logprobs or ()), *(sample.rollout_logprobs or ()))
        if not all(map(math.isfinite, (sample.advantage, sample.coef, *recorded))):
            raise DataError(
                f"{where}, sequence {sample.sample_id}",
                "its advantage, coefficient or recorded log-probs are not finite.",
                "Drop the sequence, or find out why its reward or log-probs are not numbers.",
            )


def _from_last_stage(metrics: dict[str, float], topology: Topology) -> dict[str, float]:
    """The metrics of the last pipeline stage, on every stage: rank 0 shows them."""
    if topology.pp_group is None:
        return metrics
    box = [metrics]
    dist.broadcast_object_list(box, group=topology.pp_group, group_src=topology.pp_size - 1)
    return box[0]


def accumulate(
    trainable: Trainable, method: Method[Any], samples: Sequence[TokenizedSample],
    state: TrainState, batch: BatchConfig,
) -> tuple[Sequence[Term], StepMetrics]:  # fmt: skip
    """Gradient of the loss over the global batch `samples`, in the model's gradient buffers.

    Returns:
        The terms of the loss; and metrics of all ranks, empty before the last pipeline stage.

    Raises:
        ConfigError: a loss without any weight.
        DataError: see `check_batch`.
    """
    check_batch(samples, state)
    topology = trainable.topology
    terms = method.terms(state)
    if not any(term.coef for term in terms):
        raise ConfigError(
            f"method '{method.config.name}'",
            f"at update {state.update + 1} every weight of its loss is 0: nothing would be learnt.",
            "Set one of its weights above 0.",
        )
    batches = [
        packed.to(trainable.device)
        for packed in microbatches_of_rank(
            samples, batch, rank=topology.dp_rank, num_ranks=topology.dp_size,
            rounding=topology.rounding,
        )
    ]  # fmt: skip
    models = Models(trainable.model, trainable.reference, topology)
    started = time.perf_counter()
    batches = fill_frozen(models, method, batches, samples, state)
    counts = global_counts(terms, batches, topology, trainable.device)
    prepass_s = time.perf_counter() - started
    needs = method.required()
    planned = method.plan(state).temperature
    head = Head(
        temperature=method.temperature if planned is None else planned,
        reference=trainable.reference,
        stats=needs.stats,
    )
    spec = LossSpec(terms, method.token_losses, counts, head, whole_sequences=needs.whole_sequences)
    local = backpropagate(trainable, batches, spec)
    if topology.is_last_stage and needs.frozen & PASSES:
        local.add("time/prepass", prepass_s, 1.0)
    return terms, _reduced(local, topology, trainable.device)


def backpropagate(
    trainable: Trainable, batches: Sequence[PackedBatch], spec: LossSpec
) -> StepMetrics:
    """Accumulate the gradient of the loss over this rank's micro-batches, reduced over all ranks.

    Returns:
        Metrics of this rank's micro-batches; empty before the last pipeline stage.
    """
    trainable.model.zero_grad_buffer()
    trainable.optimizer.zero_grad()
    collected: list[StepMetrics] = get_forward_backward_func()(
        forward_step_func=training_step(spec, trainable.topology),
        data_iterator=iter(batches),
        model=[trainable.model],
        num_microbatches=len(batches),
        seq_length=max(batch.num_tokens for batch in batches),
        micro_batch_size=1,
        forward_only=False,
    )
    return StepMetrics.merged(collected)


def _step(
    trainable: Trainable, optim: OptimConfig, guard: NonFiniteGuard, state: TrainState,
    plan: UpdatePlan, samples: Sequence[TokenizedSample],
) -> dict[str, float]:  # fmt: skip
    """Apply the gradients unless they are not finite, or larger than the settings allow.

    Returns:
        Metrics by name: their norm before clipping, the rate, and whether they were too large.
    """
    rate = learning_rate(optim, state.update, state.total_updates)
    clip_grad = optim.clip_grad if plan.clip_grad is None else plan.clip_grad
    set_step(trainable.optimizer, rate=rate, clip_grad=clip_grad)
    trainable.moments.use(plan.optimizer_state)
    trainable.optimizer.prepare_grads()
    norm = float(trainable.optimizer.get_grad_norm())
    metrics = {"train/grad_norm": norm, "train/lr": rate}
    is_admitted, is_steep = guard.admits(norm, state.update, samples), False
    if optim.skip_grad_norm is not None:
        is_steep = is_admitted and norm > optim.skip_grad_norm
        metrics["train/steep_skipped"] = float(is_steep)
    if is_admitted and not is_steep:
        trainable.optimizer.step()
    return metrics


def _reduced(local: StepMetrics, topology: Topology, device: torch.device) -> StepMetrics:
    """Metrics of all data-parallel ranks of the last stage."""
    if topology.dp_group is None or not topology.is_last_stage:
        return local
    names: list[list[str] | None] = [None] * topology.dp_size
    dist.all_gather_object(names, local.names(), group=topology.dp_group)
    union = sorted({name for part in names if part for name in part})
    flat = torch.tensor(
        [value for name in union for value in local.pairs.get(name, (0.0, 0.0))],
        dtype=torch.float64, device=device,
    )  # fmt: skip
    dist.all_reduce(flat, group=topology.dp_group)
    return StepMetrics.from_pairs(union, flat.tolist())
