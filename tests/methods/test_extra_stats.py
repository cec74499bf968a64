"""A method that asks for more than the statistics every method gets."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from megatron_reason.config.train import BatchConfig
from megatron_reason.schema.batch import PackedBatch, Role, Stat, TokenStats
from megatron_reason.schema.method import (
    Method,
    MethodConfig,
    Needs,
    Term,
    TrainState,
    UpdatePlan,
)
from tests.distributed import spawn
from tests.engine import invariance


class ModestConfig(MethodConfig):
    name: Literal["modest"] = "modest"


class Modest(Method[ModestConfig]):
    """Likelihood, less of tokens that are the top one, and of distributions with a peak."""

    config_class = ModestConfig
    needs = Needs(frozenset({Role.DEMO}), stats=frozenset({Stat.LOGPROB, Stat.TOP1, Stat.SUM_P2}))

    def plan(self, state: TrainState) -> UpdatePlan:  # noqa: ARG002
        return UpdatePlan({Role.DEMO: 4})

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002
        return [Term("modest", over=Role.DEMO, mean="token_mean")]

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:  # noqa: ARG002
        assert stats.top1_prob_T is not None
        assert stats.is_top1_T is not None
        assert stats.sum_p2_T is not None
        weight_T = stats.top1_prob_T * torch.where(stats.is_top1_T, 0.25, 1.0) - stats.sum_p2_T
        return {"modest": -weight_T * stats.logprob_T}


def asked_for(_rank: int, world_size: int, folder: str) -> None:
    from megatron_reason.engine.aggregation import global_counts
    from megatron_reason.engine.forward import Head, LossSpec, batch_loss
    from megatron_reason.engine.packing import microbatches_of_rank
    from megatron_reason.models.build import head_weight
    from megatron_reason.models.packed import own_places
    from megatron_reason.ops.token_stats import token_stats

    learner = Modest(ModestConfig())
    layout = invariance.Layout(1, 1, 1, cp=world_size)
    trainable = invariance.World.open(layout, Path(folder), Path(folder)).trainable
    stage, topology = trainable.model, trainable.topology
    weight = head_weight(stage)
    (batch,) = microbatches_of_rank(
        invariance.samples(), BatchConfig(max_tokens_per_microbatch=512), rank=0, num_ranks=1,
        rounding=topology.rounding,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(batch.num_tokens, weight.shape[1], generator=generator)
    # Some targets are the top ones, others are not.
    hidden[::2] += 8 * weight.detach()[batch.target_T][::2]
    place_T = torch.arange(batch.num_tokens)
    if world_size > 1:
        place_T = own_places(batch.cu_seqlens, topology.cp_rank, topology.cp_size)
    own = hidden[place_T, None].clone().requires_grad_()

    terms = learner.terms(invariance.STATE)
    counts = global_counts(terms, [batch], topology, torch.device("cpu"))
    spec = LossSpec(terms, learner.token_losses, counts, Head(stats=learner.required().stats))
    share, stats, _ = batch_loss(stage, own, batch, topology, spec)
    (found,) = torch.autograd.grad(share, own)

    whole, taken = hidden.clone().requires_grad_(), batch.supervised_N
    expected = token_stats(
        whole[taken], weight, batch.target_T[taken], backend="reference",
        vocab_size=invariance.VOCAB, extras=learner.needs.stats,
    )  # fmt: skip
    assert expected.is_top1_T is not None
    assert 0 < expected.is_top1_T.sum() < len(taken)
    for name, value_N in vars(expected).items():
        value_T = getattr(stats, name)
        assert (value_T is None) == (value_N is None), name
        if value_N is not None:
            assert value_T.dtype == value_N.dtype, name
            torch.testing.assert_close(value_T[taken], value_N)
    is_demo_N = batch.role_mask_T(Role.DEMO)[taken]
    loss = learner.token_losses(expected, batch)["modest"][is_demo_N].sum() / is_demo_N.sum()
    (gradient,) = torch.autograd.grad(loss, whole)
    torch.testing.assert_close(found[:, 0], gradient[place_T], rtol=1e-4, atol=1e-6)

    with pytest.raises(AssertionError):
        batch_loss(stage, own, batch, topology, replace(spec, head=Head()))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_statistics_asked_for_reach_the_method(num_ranks: int, tmp_path: Path) -> None:
    """With the tokens on one rank, and on two that share every sequence."""
    invariance.make_model(tmp_path, tied=False)
    spawn(asked_for, num_ranks, str(tmp_path))
