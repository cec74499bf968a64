import pytest

from megatron_reason.config.gpus import GIB
from megatron_reason.pipeline._sizes import KNOWN
from megatron_reason.pipeline.engine_share import EngineShare
from megatron_reason.pipeline.estimate import (
    Extras,
    Layout,
    Machine,
    Workload,
    cheapest_changes,
    flops_per_token,
    memory_of,
    propose,
    ranked,
)

QWEN_7B = KNOWN["Qwen2.5-7B"]
WORK = Workload(tokens_per_update=256 * 16384, longest=32768, mean_length=16384)
ALONE = Layout(1, 1, 1, 4096)


def test_states_cost_18_bytes_a_weight_and_are_shared_as_megatron_shares_them():
    alone = memory_of(QWEN_7B, ALONE, Extras())
    states = alone.weights + alone.gradients + alone.optimizer
    assert states == pytest.approx(18 * QWEN_7B.parameters, rel=1e-4)
    wide = memory_of(QWEN_7B, ALONE, Extras(value_bytes=4))
    # In float32 the weights are their own main weights.
    assert wide.weights + wide.gradients + wide.optimizer == pytest.approx(
        16 * QWEN_7B.parameters, rel=1e-4
    )
    twice = memory_of(QWEN_7B, ALONE, Extras(optimizer_states=2))
    assert twice.optimizer - alone.optimizer == pytest.approx(8 * QWEN_7B.parameters, rel=1e-4)
    halves = {
        "optimizer": Layout(1, 1, 2, 4096),
        "weights": Layout(2, 1, 1, 4096),
        "gradients": Layout(2, 1, 1, 4096),
    }
    shared = memory_of(QWEN_7B, Layout(1, 1, 1, 4096, cp=2), Extras())
    assert shared.optimizer == alone.optimizer / 2
    for part, layout in halves.items():
        shared = memory_of(QWEN_7B, layout, Extras())
        assert getattr(shared, part) == pytest.approx(getattr(alone, part) / 2, rel=1e-3)


def test_a_stage_of_a_pipeline_holds_its_layers_and_one_end():
    half = memory_of(QWEN_7B, Layout(1, 2, 1, 4096), Extras())
    assert half.weights == pytest.approx(QWEN_7B.parameters, rel=1e-3)
    # The first of two stages has begun two micro-batches before one comes back.
    whole = memory_of(QWEN_7B, ALONE, Extras()).activations
    assert half.activations in (pytest.approx(whole, rel=1e-6), pytest.approx(whole / 2, rel=1e-6))


@pytest.mark.parametrize(("before", "after"), [("none", "selective"), ("selective", "full")])
def test_recomputation_keeps_less_and_costs_speed(before, after):
    machine = Machine("H100-80", 8)
    layouts = [Layout(4, 1, 2, 32768, recompute, True) for recompute in (before, after)]
    more, less = (propose(QWEN_7B, x, WORK, machine, Extras(), mfu=0.4) for x in layouts)
    assert more.memory.activations > 1.5 * less.memory.activations
    assert more.tokens_per_s > less.tokens_per_s


def test_ranks_that_share_a_sequence_share_its_activations_and_cost_speed():
    machine = Machine("H100-80", 8)
    layouts = [Layout(1, 1, 8 // cp, 32768, cp=cp) for cp in (1, 2, 4)]
    found = [propose(QWEN_7B, x, WORK, machine, Extras(), mfu=0.4) for x in layouts]
    kept = [proposal.memory.activations for proposal in found]
    # A little more than an equal part: keys and values of the others come to it.
    assert kept[0] / 2 < kept[1] < 0.6 * kept[0]
    assert kept[0] / 4 < kept[2] < 0.4 * kept[0]
    assert found[0].tokens_per_s > found[1].tokens_per_s > found[2].tokens_per_s
    assert {proposal.layout.ranks for proposal in found} == {8}
    assert str(layouts[1]) == "TP 1, PP 1, CP 2, DP 4, 32768 tokens"


def test_speed_is_the_share_of_the_peak_that_is_assumed():
    machine = Machine("H100-80", 8)
    found = propose(QWEN_7B, Layout(1, 1, 8, 32768), WORK, machine, Extras(), mfu=0.4)
    done = found.tokens_per_s * flops_per_token(QWEN_7B, WORK.mean_length)
    assert done == pytest.approx(8 * 989e12 * 0.4)
    # 6 operations a weight, the embedding's look-up left out, and causal attention.
    used = QWEN_7B.parameters - QWEN_7B.embedding
    assert flops_per_token(QWEN_7B, 0) == pytest.approx(6 * used, rel=1e-3)


def test_what_is_proposed_fits_and_the_fastest_comes_first():
    machine = Machine("A100-40", 32)
    found = ranked(QWEN_7B, WORK, machine, Extras(), tokens=32768, mfu=0.35)
    assert found
    assert all(p.memory.total <= machine.usable and p.layout.ranks == 32 for p in found)
    rates = [p.tokens_per_s for p in found]
    assert rates == sorted(rates, reverse=True)
    assert {p.layout.tp for p in found} <= {1, 2, 4}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("gpu", ["A100-40", "A100-80", "H100-80", "H200-141"])
def test_every_known_model_fits_on_enough_of_every_gpu(name, gpu):
    found = ranked(KNOWN[name], WORK, Machine(gpu, 128), Extras(), tokens=32768, mfu=0.35)
    assert found, "no layout fits on 128 GPUs"


def test_the_changes_proposed_are_single_and_suffice():
    layout = Layout(1, 1, 8, 32768)
    limit = 76 * GIB
    assert memory_of(QWEN_7B, layout, Extras()).total > limit
    changes = cheapest_changes(QWEN_7B, layout, Extras(), limit=limit, longest=32768)
    assert changes
    assert len(changes) <= 3
    assert all(total <= limit for _, total in changes)
    # A micro-batch cannot become shorter than the longest sequence.
    assert not [words for words, _ in changes if "microbatch" in words]
    # With eight to a layer's tensors already, only sharing the tokens is left.
    deep = Layout(4, 28, 2, 32768, "full", sequence_parallel=True)
    least = memory_of(QWEN_7B, deep, Extras()).total
    (words, total), *_ = cheapest_changes(QWEN_7B, deep, Extras(), limit=least - 1, longest=32768)
    assert words == "train.parallel.context_parallel_size: 2"
    assert total < least
    short = cheapest_changes(QWEN_7B, layout, Extras(), limit=200 * GIB, longest=100)
    assert short[0][0] == "train.batch.max_tokens_per_microbatch: 16384"


def test_fewer_tokens_than_ranks_can_take_leave_some_idle():
    machine = Machine("H100-80", 8)
    few = Workload(tokens_per_update=32768, longest=4096, mean_length=2048)
    busy = propose(QWEN_7B, Layout(1, 1, 8, 4096), few, machine, Extras(), mfu=0.4)
    idle = propose(QWEN_7B, Layout(1, 1, 8, 32768), few, machine, Extras(), mfu=0.4)
    assert idle.tokens_per_s == pytest.approx(busy.tokens_per_s / 8)


def test_an_engine_beside_the_trainer_takes_its_share():
    with_engine = memory_of(
        QWEN_7B, ALONE, Extras(engine=EngineShare(0, 80 * GIB, 1 / 80), has_reference=True)
    )
    without = memory_of(QWEN_7B, ALONE, Extras())
    assert with_engine.total == without.total + GIB + without.weights
