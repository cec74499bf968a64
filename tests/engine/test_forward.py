"""The loss of a micro-batch is the same whether its head is streamed or passed over twice."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_reason.config.train import BatchConfig
from tests.distributed import spawn
from tests.engine import invariance

TOKENS_PER_CHUNK = 7


def both_ways(_rank: int, _world_size: int, folder: str) -> None:
    from megatron_reason.engine.aggregation import global_counts, means_of
    from megatron_reason.engine.forward import Head, LossSpec, batch_loss
    from megatron_reason.engine.frozen import Models, fill_frozen
    from megatron_reason.engine.packing import microbatches_of_rank
    from megatron_reason.models.build import head_weight
    from megatron_reason.ops.token_stats import HeadOptions

    model, base = Path(folder, "model"), Path(folder, "base")
    trainable = invariance.World.open(invariance.Layout(1, 1, 1), model, base).trainable
    stage, topology = trainable.model, trainable.topology
    weight = head_weight(stage)
    drawn = invariance.samples()
    whole = BatchConfig(max_tokens_per_microbatch=512)
    streamed: list[str] = []
    for name in invariance.METHODS:
        learner = invariance.method(name)
        batches = microbatches_of_rank(drawn, whole, rank=0, num_ranks=1)
        models = Models(stage, trainable.reference, topology)
        (batch,) = fill_frozen(models, learner, batches, drawn, invariance.STATE)
        terms = learner.terms(invariance.STATE)
        counts = global_counts(terms, [batch], topology, torch.device("cpu"))
        head = Head(
            HeadOptions(tokens_per_chunk=TOKENS_PER_CHUNK), learner.temperature,
            trainable.reference,
        )  # fmt: skip
        needed = learner.required().whole_sequences
        spec = LossSpec(terms, learner.token_losses, counts, head, whole_sequences=needed)
        generator = torch.Generator().manual_seed(1)
        shape = (batch.num_tokens, 1, weight.shape[1])
        hidden = torch.randn(shape, generator=generator).requires_grad_()

        found: list[tuple[torch.Tensor, ...]] = []
        for one in (spec, replace(spec, whole_sequences=True)):
            share, stats, metrics = batch_loss(stage, hidden, batch, topology, one)
            grads = torch.autograd.grad(share, (hidden, weight))
            means = torch.tensor(list(means_of(terms, metrics).values()))
            found.append((share.detach(), *grads, stats.logprob_T.detach(), means))
            if one is spec and not stats.logprob_T.requires_grad:
                streamed.append(name)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6, msg=f"{name}: {found}")
    # Whose loss looks at whole sequences, or at a whole distribution of the reference.
    whole_sequences = {"GSPO", "SRFT", "SRFT without w_SFT", "SRFT without w_RL"}
    assert set(invariance.METHODS) - set(streamed) == whole_sequences | {"SFT_KL"}


def test_streamed_and_two_passes_agree_for_every_method(tmp_path: Path) -> None:
    invariance.make_model(tmp_path / "model", tied=False)
    invariance.make_model(tmp_path / "base", tied=False, seed=4)
    spawn(both_ways, 1, str(tmp_path))


def test_a_part_has_no_whole_sequences() -> None:
    from megatron_reason.engine.packing import pack

    batch = pack(invariance.samples())
    chosen = batch.supervised_N[3:9]
    part = batch.part(chosen)
    assert part.num_tokens == 6
    assert torch.equal(part.old_logprob_T, batch.old_logprob_T[chosen])
    batch.sequence_sums(batch.old_logprob_T)
    with pytest.raises(NotImplementedError, match="whole_sequences=True"):
        part.sequence_means(part.old_logprob_T)


def counted_collectives(_rank: int, _world_size: int, folder: str) -> None:
    from megatron_reason.engine.aggregation import global_counts
    from megatron_reason.engine.forward import Head, LossSpec, batch_loss
    from megatron_reason.engine.packing import microbatches_of_rank
    from megatron_reason.models.build import head_weight
    from megatron_reason.ops.token_stats import HeadOptions
    from tests.ops.test_token_stats import collectives

    model = Path(folder, "model")
    for is_split in (False, True):
        world = invariance.World.open(
            invariance.Layout(2, 1, 1), model, model, sequence_parallel=is_split
        )
        stage, topology = world.trainable.model, world.trainable.topology
        learner = invariance.method("SFT")
        whole = BatchConfig(max_tokens_per_microbatch=512)
        (batch,) = microbatches_of_rank(
            invariance.samples(), whole, rank=0, num_ranks=1, rounding=topology.rounding
        )
        terms = learner.terms(invariance.STATE)
        counts = global_counts(terms, [batch], topology, torch.device("cpu"))
        head = Head(HeadOptions(tokens_per_chunk=TOKENS_PER_CHUNK, check=False))
        spec = LossSpec(terms, learner.token_losses, counts, head)
        own = batch.num_tokens // (2 if is_split else 1)
        gathered = {"c10d::_allgather_base_": 1} if is_split else {}
        chunks = -(-len(batch.supervised_N) // TOKENS_PER_CHUNK)
        assert chunks > 2
        for one, forth, back in (
            (spec, {"c10d::allgather_": chunks, "c10d::allreduce_": 1}, {}),
            (
                replace(spec, whole_sequences=True),
                {"c10d::allgather_": 1},
                {"c10d::allreduce_": 1},
            ),
        ):
            hidden = torch.randn(own, 1, head_weight(stage).shape[1]).requires_grad_()
            with torch.profiler.profile() as forward:
                share, _, _ = batch_loss(stage, hidden, batch, topology, one)
            with torch.profiler.profile() as backward:
                share.backward()
            assert collectives(forward) == {**forth, **gathered}
            assert collectives(backward) == back
            assert hidden.grad is not None


def test_sequence_parallelism_adds_one_gathering_of_the_hidden_states(tmp_path: Path) -> None:
    invariance.make_model(tmp_path / "model", tied=False)
    spawn(counted_collectives, 2, str(tmp_path))
