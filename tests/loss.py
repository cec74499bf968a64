"""Loss and gradient of a method on fixture F, through the real op and the real aggregation."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from megatron_reason.engine.aggregation import global_counts, means_of, weighted_loss
from megatron_reason.engine.frozen import whole_batch
from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import ROLE_INDEX, PackedBatch, Role, TokenizedSample, TokenStats
from megatron_reason.schema.credit import Credit, GroupOutcome
from megatron_reason.schema.method import Frozen, Method, TrainState
from megatron_reason.schema.topology import Topology
from tests import fixture_f


def loss_and_gradient(method: Method[Any], roles: tuple[Role, ...]) -> tuple[float, Tensor]:
    """Loss of the four sequences with `roles`, and its gradient [8, 5] in the logits."""
    loss, gradient, _ = run(method, fixture_f.batch(roles))
    return loss, gradient


FIRST = TrainState(0, 1)


def run(
    method: Method[Any], batch: PackedBatch, *, state: TrainState = FIRST,
    keep: tuple[int, ...] = (0, 1, 2, 3), columns: tuple[int, int, int] = (0, 5, 1),
    group: Any = None,
) -> tuple[float, Tensor, dict[str, float]]:  # fmt: skip
    """Loss of `batch`, its gradient in this shard's logits, and the mean of every term.

    `columns` are first column, number of columns and number of shards.
    """
    first, number, shards = columns
    taken = fixture_f.rows(keep)

    def shard(logits: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(logits[taken], (0, number * shards - 5), value=77.0)
        return padded[:, first : first + number].clone()

    logits = shard(fixture_f.LOGITS).requires_grad_()
    stats = token_stats_from_logits(
        logits, batch.target_T, tp_group=group, vocab_size=5,
        reference_logits=shard(fixture_f.REF_LOGITS),
    )  # fmt: skip
    if Frozen.COEFFICIENTS in method.required().frozen:
        batch = _with_coefficients(method, batch, stats, state)
    terms = method.terms(state)
    counts = global_counts(terms, [batch], Topology(), torch.device("cpu"))
    loss, metrics = weighted_loss(terms, method.token_losses(stats, batch), batch, counts)
    loss.backward()
    assert logits.grad is not None
    return loss.item(), logits.grad, means_of(terms, metrics)


def credited(
    method: Method[Any], rewards: tuple[float, ...], *, solved: tuple[bool, ...] | None = None,
    demo_reward: float | None = None,
) -> Credit:  # fmt: skip
    """Credit of a group with these rewards; solved where the reward is positive."""
    solved = tuple(reward > 0 for reward in rewards) if solved is None else solved
    return method.credit(GroupOutcome(rewards, solved, (2,) * len(rewards), demo_reward))


def _with_coefficients(
    method: Method[Any], batch: PackedBatch, stats: TokenStats, state: TrainState
) -> PackedBatch:
    detached = TokenStats(stats.logprob_T.detach(), stats.entropy_T.detach())
    whole = whole_batch([batch], [detached], samples_of(batch), Topology())
    return replace(batch, coef_T=method.coefficients(whole, state))


def samples_of(batch: PackedBatch) -> list[TokenizedSample]:
    """Samples that pack to `batch`, as far as statistics of the whole batch look at them."""
    old = batch.old_logprob_T.split(batch.supervised_tokens_S().tolist())
    by_index = {index: role for role, index in ROLE_INDEX.items()}
    return [
        TokenizedSample(
            name, by_index[int(batch.role_S[i])], (0,) * (len(old[i]) + 1), 1,
            advantage=float(batch.advantage_S[i]), is_correct=bool(batch.is_correct_S[i]),
            old_logprobs=tuple(old[i].tolist()),
        )
        for i, name in enumerate(batch.sample_ids)
    ]  # fmt: skip
