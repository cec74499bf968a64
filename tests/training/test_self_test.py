from pathlib import Path

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.training.self_test import fixed_samples, prove_packing
from tests.distributed import spawn
from tools.make_tiny_model import make_tiny_model


def proves(rank: int, world_size: int, root: str) -> None:
    from megatron_reason.config.train import OptimConfig
    from megatron_reason.engine.startup import load_model, make_trainable
    from megatron_reason.engine.topology import init_topology

    parallel = ParallelConfig(pipeline_model_parallel_size=world_size)
    topology = init_topology(parallel)
    model = ModelConfig(path="x", dtype="float32")
    stage = load_model(model, Path(root), parallel, topology)
    trainable = make_trainable(stage, OptimConfig(lr=1e-3), topology)
    prove_packing(fixed_samples(Path(root)), trainable)


def test_packs_keep_sequences_apart_on_a_pipeline(tmp_path: Path) -> None:
    spawn(proves, 2, str(make_tiny_model("Qwen2ForCausalLM", tmp_path)))


def test_fixed_samples_are_the_same_whenever_asked_and_differ_from_each_other(
    tmp_path: Path,
) -> None:
    model = make_tiny_model("Qwen2ForCausalLM", tmp_path, num_hidden_layers=1)
    first, second = fixed_samples(model)
    assert (first, second) == tuple(fixed_samples(model))
    assert first.ids != second.ids
    assert min(len(first.ids), len(second.ids)) > 8
    (tmp_path / "tokenizer_config.json").unlink()
    third, fourth = fixed_samples(model)
    assert third.ids != fourth.ids
