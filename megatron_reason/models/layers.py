"""Megatron's layer spec of a decoder: which modules its layers are made of.

Both kinds have the same parameters under the same names, so that checkpoints and the bridge do not
know which one it is. Not here: sizes (`build.py`), our attention and norms.
"""

from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_reason import platform
from megatron_reason.config.model import TransformerImpl
from megatron_reason.errors import ConfigError
from megatron_reason.logs import get_logger
from megatron_reason.models.architecture import Shape
from megatron_reason.models.attention import PackedAttention
from megatron_reason.models.norm import RMSNorm
from megatron_reason.models.router import Router

_LOG = get_logger(__name__)


def block_spec(transformer: TransformerConfig, shape: Shape, impl: TransformerImpl) -> Any:  # noqa: ANN401
    """Layers of this rank's stage; Megatron's own type for it is too narrow.

    Args:
        transformer: what Megatron is told about the model.
        shape: what tells one architecture from another.
        impl: whose matrices and attention; `auto` for Transformer Engine's where they fit.

    Raises:
        ConfigError: Transformer Engine is asked for by name, and is not installed or does not fit.
    """
    layer: Any = get_gpt_layer_local_spec(
        num_experts=shape.experts.count if shape.experts else None,
        normalization="RMSNorm",
        qk_layernorm=shape.qk_norm,
    )
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = ModuleSpec(module=PackedAttention)
    if shape.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    if shape.experts:
        layer.submodules.mlp.submodules.router = Router
    if _wants_transformer_engine(transformer, shape, impl):
        _LOG.info("layers by Transformer Engine; model.transformer_impl: local for Megatron's own")
        _use_transformer_engine(layer)
    layers = [layer] * get_num_layers_to_build(transformer)
    norm: Any = RMSNorm
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=norm)


def _wants_transformer_engine(
    transformer: TransformerConfig, shape: Shape, impl: TransformerImpl
) -> bool:
    # What Megatron could import; a package that does not load counts as none.
    from megatron.core.extensions.transformer_engine import HAVE_TE

    if impl == "auto":
        # Its attention knows packed sequences in data types of two bytes only.
        fits = shape.experts is None and transformer.params_dtype.itemsize == 2
        return bool(HAVE_TE) and platform.num_gpus() > 0 and fits
    if impl == "local":
        return False
    where = "model.transformer_impl"
    if not HAVE_TE:
        raise ConfigError(
            where,
            "Transformer Engine is not installed here, or does not load.",
            "Install it (pip install 'transformer_engine[pytorch]'), or set it to local.",
        )
    if shape.experts:
        raise ConfigError(where, "it is not wired for models with experts.", "Set it to local.")
    return True


def _use_transformer_engine(layer: Any) -> None:  # noqa: ANN401
    """Take matrices and attention from it; norms stay apart, as Hugging Face names them."""
    from megatron.core.extensions import transformer_engine as te

    attention, mlp = layer.submodules.self_attention.submodules, layer.submodules.mlp.submodules
    attention.linear_qkv = mlp.linear_fc1 = te.TEColumnParallelLinear
    attention.linear_proj = mlp.linear_fc2 = te.TERowParallelLinear
    attention.core_attention = te.TEDotProductAttention
