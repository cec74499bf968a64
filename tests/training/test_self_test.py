from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from torch import Tensor

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


def leaks(_rank: int, _world_size: int, root: str) -> None:
    from megatron_reason.config.train import OptimConfig
    from megatron_reason.engine.startup import load_model, make_trainable
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.errors import NumericsError
    from megatron_reason.models.attention import PackedAttention

    topology = init_topology(ParallelConfig())
    model = ModelConfig(path="x", dtype="float32")
    stage = load_model(model, Path(root), ParallelConfig(), topology)
    trainable = make_trainable(stage, OptimConfig(lr=1e-3), topology)

    def as_one(self: Any, query: Tensor, key: Tensor, value: Tensor, _: object) -> Tensor:
        """The whole pack as a single sequence."""
        return self._attend_part(query, key, value)

    with (
        patch.object(PackedAttention, "_attend_one_by_one", as_one),
        pytest.raises(NumericsError, match="packed beside it"),
    ):
        prove_packing(fixed_samples(Path(root)), trainable)


def test_a_pack_whose_sequences_see_each_other_is_caught(tmp_path: Path) -> None:
    spawn(leaks, 1, str(make_tiny_model("Qwen2ForCausalLM", tmp_path)))


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
