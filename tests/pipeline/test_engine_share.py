import pytest

from megatron_reason.config.gpus import GIB, GPUS
from megatron_reason.config.sampling import EngineConfig
from megatron_reason.errors import ConfigError
from megatron_reason.pipeline._sizes import KNOWN
from megatron_reason.pipeline.engine_share import EngineShare, objection, on_gpus

H100 = GPUS["H100-80"]
SIZES = KNOWN["Qwen2.5-7B"]
WEIGHTS = 2 * SIZES.parameters


def share_of(**settings):
    return EngineShare.of(EngineConfig(**settings), SIZES, H100, "bfloat16")


def test_shards_of_the_weights_and_a_share_of_the_gpu():
    alone = share_of()
    assert (alone.weights, alone.taken) == (WEIGHTS, 0.85 * 80 * GIB)
    sharded = share_of(tensor_parallel_size=4, gpu_memory_fraction=0.25)
    assert (sharded.weights, sharded.taken) == (WEIGHTS / 4, 20 * GIB)
    wide = EngineShare.of(EngineConfig(), SIZES, H100, "float32")
    assert wide is not None
    assert wide.weights == 2 * WEIGHTS


def test_servers_have_other_gpus_and_transformers_takes_what_it_needs():
    assert share_of(name="vllm-server") is None
    inside = share_of(name="transformers")
    assert inside.taken == pytest.approx(WEIGHTS + 4 * GIB)
    assert [*inside.smaller()] == []


def test_beside_a_trainer_it_takes_half_unless_told():
    assert EngineConfig().beside_a_trainer().memory_fraction == 0.5
    assert EngineConfig(gpu_memory_fraction=0.7).beside_a_trainer().memory_fraction == 0.7
    for name in ("vllm-server", "transformers"):
        assert EngineConfig(name=name).beside_a_trainer() == EngineConfig(name=name)


def test_one_that_sleeps_takes_what_an_update_frees():
    awake, asleep = share_of(), share_of(sleep_mode=True)
    assert awake.beside(30 * GIB) == 68 * GIB
    assert asleep.beside(30 * GIB) == 38 * GIB
    # A process that sleeps is still a process: 2 GiB of context and graphs.
    assert asleep.beside(90 * GIB) == 2 * GIB


def test_smaller_ones_still_hold_the_weights():
    fractions = [smaller.fraction for smaller in share_of(gpu_memory_fraction=0.43).smaller()]
    # 14.2 GiB of weights and 4 beside them are 0.23 of the GPU.
    assert fractions == [0.4, 0.35, 0.3, 0.25]
    assert next(share_of().smaller()).fraction == 0.8


@pytest.mark.parametrize(
    ("model", "settings", "wanted"),
    [
        ("Qwen2.5-7B", {}, None),
        ("Qwen2.5-32B", {}, None),
        ("Qwen2.5-32B", {"gpu_memory_fraction": 0.5}, "set engine.tensor_parallel_size: 2"),
        ("Qwen2.5-72B", {}, "135 GiB of weights on each GPU do not fit into the 68 GiB"),
        ("Qwen2.5-72B", {"tensor_parallel_size": 4}, None),
        ("Qwen2.5-72B", {"name": "vllm-server"}, "set engine.tensor_parallel_size: 4"),
        ("Qwen2.5-72B", {"gpu_memory_fraction": 0.1}, "no eight of them can"),
        ("Qwen2.5-72B", {"name": "transformers"}, None),
        ("Qwen2.5-7B", {"tensor_parallel_size": 8}, "8 does not divide 28 heads, 4 key heads"),
        # 12 heads, 2 key heads and 8960 columns: 3 shares the heads only, 4 copies the key heads.
        ("Qwen2.5-1.5B", {"tensor_parallel_size": 3}, "3 does not divide 12 heads, 2 key heads"),
        ("Qwen2.5-1.5B", {"tensor_parallel_size": 4}, None),
    ],
)
def test_a_model_that_vllm_cannot_hold_is_told_on_how_many_gpus_it_could(model, settings, wanted):
    found = objection(EngineConfig(**settings), KNOWN[model], H100, "bfloat16")
    if wanted is None:
        assert found is None
    else:
        assert found is not None
        assert wanted in found


@pytest.mark.parametrize(
    ("model", "gpus", "shards"),
    [
        ("Qwen2.5-7B", 8, 4),
        ("Qwen2.5-7B", 3, 2),
        ("Qwen2.5-72B", 8, 8),
        ("Qwen2.5-1.5B", 8, 4),
        ("Qwen2.5-14B", 1, 1),
    ],
)
def test_a_server_takes_of_its_gpus_what_the_heads_allow(model, gpus, shards):
    assert on_gpus(EngineConfig(), KNOWN[model], gpus).tensor_parallel_size == shards


def test_a_server_that_is_told_takes_what_it_is_told_if_it_is_there():
    told = EngineConfig(tensor_parallel_size=2)
    assert on_gpus(told, SIZES, 8) is told
    assert on_gpus(EngineConfig(tensor_parallel_size=1), SIZES, 8).tensor_parallel_size == 1
    with pytest.raises(ConfigError, match="2 is more than the 1 GPUs"):
        on_gpus(told, SIZES, 1)
