import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import ConfigError
from tests.distributed import spawn
from tests.engine import invariance


def specs(rank: int, world_size: int) -> None:
    from megatron.core.extensions import transformer_engine as te
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from megatron_reason.models.layers import _use_transformer_engine

    layer: Any = get_gpt_layer_local_spec(normalization="RMSNorm")
    parts = layer.submodules
    norms = parts.input_layernorm, parts.pre_mlp_layernorm
    _use_transformer_engine(layer)
    taken = [
        parts.self_attention.submodules.linear_qkv, parts.self_attention.submodules.linear_proj,
        parts.self_attention.submodules.core_attention, parts.mlp.submodules.linear_fc1,
        parts.mlp.submodules.linear_fc2,
    ]  # fmt: skip
    assert taken == [
        te.TEColumnParallelLinear, te.TERowParallelLinear, te.TEDotProductAttention,
        te.TEColumnParallelLinear, te.TERowParallelLinear,
    ]  # fmt: skip
    assert (parts.input_layernorm, parts.pre_mlp_layernorm) == norms


def test_transformer_engine_takes_matrices_and_attention_and_leaves_the_norms() -> None:
    spawn(specs, 1)


def refused(rank: int, world_size: int, folder: str) -> None:
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.models.build import build_model

    model = ModelConfig(path=folder, dtype="float32", transformer_impl="transformer_engine")
    topology = init_topology(ParallelConfig())
    with pytest.raises(ConfigError, match=r"not installed here.*\n.*or set it to local"):
        build_model(Path(folder), model, ParallelConfig(), topology)


def taken_by_itself(rank: int, world_size: int) -> None:
    """Where it loads, on a GPU, for dense models of two bytes; else Megatron's own."""
    from megatron.core.extensions import transformer_engine as te

    from megatron_reason import platform
    from megatron_reason.models import layers
    from megatron_reason.models.architecture import Experts

    def wanted(dtype: torch.dtype, experts: Experts | None, impl: Any) -> bool:
        transformer: Any = SimpleNamespace(params_dtype=dtype)
        shape: Any = SimpleNamespace(experts=experts)
        return layers._wants_transformer_engine(transformer, shape, impl)

    experts: Any = object()
    assert not wanted(torch.bfloat16, None, "auto")
    with patch.object(te, "HAVE_TE", True):
        assert not wanted(torch.bfloat16, None, "auto")
        with patch.object(platform, "num_gpus", lambda: 1):
            assert wanted(torch.bfloat16, None, "auto")
            assert not wanted(torch.bfloat16, None, "local")
            assert not wanted(torch.float32, None, "auto")
            assert not wanted(torch.bfloat16, experts, "auto")
        assert wanted(torch.bfloat16, None, "transformer_engine")
        with pytest.raises(ConfigError, match="not wired for models with experts"):
            wanted(torch.bfloat16, experts, "transformer_engine")


def test_by_default_it_is_taken_where_it_fits() -> None:
    spawn(taken_by_itself, 1)


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is not None, reason="it is installed"
)
def test_without_it_no_model_is_built(tmp_path: Path) -> None:
    spawn(refused, 1, str(invariance.make_model(tmp_path, tied=True)))


def test_fp8_needs_transformer_engine_and_blocks_of_tokens() -> None:
    with pytest.raises(ValueError, match="set transformer_impl: transformer_engine"):
        ModelConfig(path="x", fp8="hybrid")
    engine: dict[str, Any] = {"path": "x", "transformer_impl": "transformer_engine"}
    assert ModelConfig(**engine).token_multiple == 1
    assert ModelConfig(**engine, fp8="hybrid").token_multiple == 16
    assert ModelConfig(**engine, fp8="e4m3", fp8_recipe="mxfp8").token_multiple == 32
