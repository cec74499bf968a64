"""Constants per token that a method needs before the forward pass of its update.

Recorded log-probs come with the samples; a reference model's and the whole batch's statistics come
from forward-only passes here. N supervised tokens of the global batch. Not here: what a method does
with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_reason.engine.forward import Head, hidden_step, statistics_step
from megatron_reason.engine.prepass import forward_only
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.files import hash_text
from megatron_reason.schema.batch import (
    ROLE_INDEX,
    GlobalTokens,
    PackedBatch,
    Role,
    TokenizedSample,
    TokenStats,
)
from megatron_reason.schema.method import Frozen, Method, TrainState
from megatron_reason.schema.topology import Topology

PASSES = frozenset({Frozen.REF_LOGPROB, Frozen.REF_HIDDEN, Frozen.COEFFICIENTS})
"""Constants that cost a forward pass over the batch."""
_RECORDED = {Frozen.OLD_LOGPROB: "old_logprobs", Frozen.ROLLOUT_LOGPROB: "rollout_logprobs"}


@dataclass(frozen=True)
class Models:
    """The model that is trained, and the frozen one it is compared with."""

    policy: nn.Module
    reference: nn.Module | None
    topology: Topology


def fill_frozen(
    models: Models, method: Method[Any], batches: Sequence[PackedBatch],
    samples: Sequence[TokenizedSample], state: TrainState,
) -> list[PackedBatch]:  # fmt: skip
    """This rank's micro-batches with every constant that `method` needs.

    Args:
        models: policy and reference.
        method: what asks.
        batches: this rank's micro-batches of the update.
        samples: the whole global batch, the same list on every rank.
        state: progress of the run.

    Raises:
        DataError: a rollout without the log-probs that should have been recorded.
        ConfigError: a reference model is needed and there is none.
    """
    needed = method.required().frozen
    check_recorded(needed, samples)
    if needed & {Frozen.REF_LOGPROB, Frozen.REF_HIDDEN} and models.reference is None:
        raise ConfigError(
            f"method '{method.config.name}'",
            "it compares the policy with a reference model, and none was loaded.",
            "Train it through `mreason train` or `mreason run`, which load the base model twice.",
        )
    filled = list(batches)
    if Frozen.REF_LOGPROB in needed:
        filled = _with_ref_logprobs(models, filled, method.temperature)
    if Frozen.REF_HIDDEN in needed:
        filled = _with_ref_hidden(models, filled)
    if Frozen.COEFFICIENTS in needed:
        filled = _with_coefficients(models, method, filled, samples, state)
    return filled


def check_recorded(needed: frozenset[Frozen], samples: Sequence[TokenizedSample]) -> None:
    """Refuse rollouts that lack recorded log-probs, or have them for another number of tokens.

    Raises:
        DataError: naming the first such rollout.
    """
    for what, field in _RECORDED.items():
        if what not in needed:
            continue
        for sample in samples:
            recorded: tuple[float, ...] = getattr(sample, field) or ()
            if sample.role == Role.ROLLOUT and len(recorded) != sample.num_targets:
                raise DataError(
                    f"rollout {sample.sample_id}",
                    f"it has {len(recorded)} recorded values of '{field}' for "
                    f"{sample.num_targets} response tokens.",
                    "Record them when the rollout is made, or set the method's old_policy to "
                    "'current'.",
                )


def whole_batch(
    batches: Sequence[PackedBatch], stats: Sequence[TokenStats],
    samples: Sequence[TokenizedSample], topology: Topology,
) -> GlobalTokens:  # fmt: skip
    """Statistics of every supervised token of the global batch, on every rank of the last stage."""
    # Sums over a whole batch, in whatever order, must agree to more digits than float32 has.
    device, dtype = stats[0].logprob_T.device, torch.float64
    counts_S = torch.tensor([sample.num_targets for sample in samples], device=device)
    whole_2N = torch.zeros(2, int(counts_S.sum()), dtype=dtype, device=device)
    for batch, own in zip(batches, stats, strict=True):
        place_N = _places(batch, counts_S)
        whole_2N[0, place_N] = own.logprob_T[batch.supervised_N].to(dtype)
        whole_2N[1, place_N] = own.entropy_T[batch.supervised_N].to(dtype)
    if topology.dp_group is not None:
        dist.all_reduce(whole_2N, group=topology.dp_group)
    recorded = [value for s in samples for value in s.old_logprobs or (0.0,) * s.num_targets]
    return GlobalTokens(
        logprob_N=whole_2N[0],
        entropy_N=whole_2N[1],
        old_logprob_N=torch.tensor(recorded, dtype=dtype, device=device),
        sequence_N=torch.repeat_interleave(counts_S),
        role_S=torch.tensor([ROLE_INDEX[sample.role] for sample in samples], device=device),
        advantage_S=torch.tensor([s.advantage for s in samples], dtype=dtype, device=device),
        is_correct_S=torch.tensor([sample.is_correct for sample in samples], device=device),
        key_S=torch.tensor([_key(sample.sample_id) for sample in samples], device=device),
    )


def _key(sample_id: str) -> int:
    return int(hash_text(sample_id, 15), 16)


def _with_ref_logprobs(
    models: Models, batches: list[PackedBatch], temperature: float
) -> list[PackedBatch]:
    assert models.reference is not None, "checked by fill_frozen"
    head = Head(temperature=temperature)
    step = statistics_step(models.topology, head, lambda stats, _: stats.logprob_T)
    found: list[Tensor] = forward_only(models.reference, batches, step)
    return [replace(b, ref_logprob_T=value_T) for b, value_T in _paired(batches, found, models)]


def _with_ref_hidden(models: Models, batches: list[PackedBatch]) -> list[PackedBatch]:
    assert models.reference is not None, "checked by fill_frozen"
    found: list[Tensor] = forward_only(models.reference, batches, hidden_step(models.topology))
    return [replace(b, ref_hidden_ND=rows_ND) for b, rows_ND in _paired(batches, found, models)]


def _with_coefficients(
    models: Models, method: Method[Any], batches: list[PackedBatch],
    samples: Sequence[TokenizedSample], state: TrainState,
) -> list[PackedBatch]:  # fmt: skip
    head = Head(temperature=method.temperature)
    step = statistics_step(models.topology, head, lambda stats, _: stats)
    found: list[TokenStats] = forward_only(models.policy, batches, step)
    if not models.topology.is_last_stage:
        return batches
    whole = whole_batch(batches, found, samples, models.topology)
    coef_N = method.coefficients(whole, state)
    counts_S = torch.bincount(whole.sequence_N, minlength=len(samples))
    filled: list[PackedBatch] = []
    for batch in batches:
        coef_T = coef_N.new_zeros(batch.num_tokens)
        coef_T[batch.supervised_N] = coef_N[_places(batch, counts_S)]
        filled.append(replace(batch, coef_T=coef_T))
    return filled


def _places(batch: PackedBatch, counts_S: Tensor) -> Tensor:
    """int64 [N]: where each supervised token of `batch` stands in the global order of tokens."""
    starts_S = counts_S.cumsum(0) - counts_S
    segment_N = batch.segment_T[batch.supervised_N]
    own_S = batch.supervised_tokens_S()
    first_S = own_S.cumsum(0) - own_S
    rank_N = torch.arange(len(segment_N), device=segment_N.device) - first_S[segment_N]
    return starts_S[batch.index_S][segment_N] + rank_N


def _paired(
    batches: list[PackedBatch], found: list[Tensor], models: Models
) -> list[tuple[PackedBatch, Tensor | None]]:
    """Each micro-batch with its result; stages before the last have none."""
    if not models.topology.is_last_stage:
        return [(batch, None) for batch in batches]
    return list(zip(batches, found, strict=True))
