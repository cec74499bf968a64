"""HF config -> Megatron TransformerConfig -> this rank's pipeline stage of a GPTModel.

The stage returns hidden states, never logits: the LM head is evaluated together with the loss, by
`ops/token_stats.py`. Not here: weights (`importer.py`).
"""

import copy
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_reason.config.model import ModelConfig, StatsBackend
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import ConversionError
from megatron_reason.models.architecture import Shape, read_architecture
from megatron_reason.models.divisibility import check_topology
from megatron_reason.models.layers import block_spec
from megatron_reason.models.layout import HFConfig, head_width
from megatron_reason.schema.topology import Topology

_ROPE_FIELDS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
}
"""Rotary embeddings that are a choice of frequencies and nothing else, with their fields."""


class Stage(GPTModel):
    """One pipeline stage of a decoder; the last one returns hidden states after the final norm."""

    hf_vocab_size: int
    """Vocabulary of the checkpoint, without the padding that makes it divisible by TP."""
    stats_backend: StatsBackend
    """What computes the statistics of its tokens."""

    def _postprocess(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:  # noqa: ANN401
        return hidden_states


def build_model(
    hf_folder: Path, model: ModelConfig, parallel: ParallelConfig, topology: Topology
) -> Stage:
    """This rank's stage, with uninitialised weights of the configured data type.

    Args:
        hf_folder: checkpoint whose shape is built.
        model: data type, rotary base, whose layers.
        parallel: layout; must be the one `topology` was made from.
        topology: this rank's place.

    Raises:
        ConversionError: a configuration no family covers.
        ConfigError: layers of a library that is not installed, or does not fit the model.
        TopologyError: sizes that the layout cannot split.
    """
    config, architecture = read_architecture(hf_folder)
    check_topology(config, architecture, parallel)
    shape = architecture.shape(config)
    transformer = _transformer_config(config, shape, parallel, model)
    stage = Stage(
        config=transformer,
        transformer_layer_spec=block_spec(transformer, shape, model.transformer_impl),
        vocab_size=config.vocab_size + -config.vocab_size % topology.tp_size,
        max_sequence_length=model.context_length or config.max_position_embeddings,
        pre_process=topology.is_first_stage,
        post_process=topology.is_last_stage,
        share_embeddings_and_output_weights=shape.tied,
        position_embedding_type="rope",
    )
    stage.hf_vocab_size = config.vocab_size
    stage.stats_backend = model.token_stats
    _mark_shards(stage)
    stage.rotary_pos_emb.inv_freq = _inverse_frequencies(config, model)
    # The distributed optimizer maps parameters to buffers by one data type: norms included.
    return stage.to(getattr(torch, model.dtype))


def head_weight(model: nn.Module) -> Tensor:
    """[V_padded / tp, D]: this rank's rows of the LM head; last pipeline stage only."""
    stage: Any = bare(model)
    if stage.share_embeddings_and_output_weights:
        return stage.shared_embedding_or_output_weight()
    return stage.output_layer.weight


def vocab_size(model: nn.Module) -> int:
    """Vocabulary of the checkpoint, without padding."""
    return bare(model).hf_vocab_size


def stats_backend(model: nn.Module) -> StatsBackend:
    """What the configuration wants the statistics of its tokens to be computed by."""
    return bare(model).stats_backend


def _mark_shards(stage: nn.Module) -> None:
    """Note on each parallel weight along which dimension it is sharded.

    Megatron does so while initialising weights, which is left out here because they are imported.
    """
    for module in stage.modules():
        if isinstance(module, (ColumnParallelLinear, VocabParallelEmbedding)):
            dim = 0
        elif isinstance(module, RowParallelLinear):
            dim = 1
        else:
            continue
        if module.weight is not None:
            set_tensor_model_parallel_attributes(module.weight, is_parallel=True, dim=dim, stride=1)


def bare(model: nn.Module) -> Stage:
    """The pipeline stage inside Megatron's wrappers."""
    inner: Any = model
    while not isinstance(inner, Stage):
        inner = inner.module
    return inner


def _transformer_config(
    config: HFConfig, shape: Shape, parallel: ParallelConfig, model: ModelConfig
) -> TransformerConfig:
    dtype = getattr(torch, model.dtype)
    return TransformerConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads,
        kv_channels=head_width(config),
        normalization="RMSNorm",
        layernorm_epsilon=config.rms_norm_eps,
        qk_layernorm=shape.qk_norm,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        gated_linear_unit=True,
        activation_func=nn.functional.silu,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        autocast_dtype=dtype,
        variable_seq_lengths=True,
        # Read by no dense model, but variable lengths are refused with the default dispatcher.
        moe_token_dispatcher_type="alltoall",
        expert_model_parallel_size=parallel.expert_model_parallel_size,
        expert_tensor_parallel_size=parallel.expert_tensor_parallel_size,
        **_expert_fields(shape),
        calculate_per_token_loss=True,
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        attention_softmax_in_fp32=True,
        deallocate_pipeline_outputs=False,
        fp8=model.fp8,
        fp8_recipe=model.fp8_recipe,
        **_recompute_fields(shape, parallel),
    )


def _recompute_fields(shape: Shape, parallel: ParallelConfig) -> dict[str, Any]:
    """What a layer does not keep for its backward pass."""
    if parallel.recompute == "full":
        return {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    if parallel.recompute == "selective":
        feed_forward = "moe" if shape.experts else "mlp"
        return {"recompute_granularity": "selective", "recompute_modules": [feed_forward]}
    return {}


def _expert_fields(shape: Shape) -> dict[str, Any]:
    """What Megatron is told about a mixture of experts; no loss but the method's, no capacity."""
    experts = shape.experts
    if experts is None:
        return {}
    return {
        "num_moe_experts": experts.count,
        "moe_router_topk": experts.per_token,
        "moe_ffn_hidden_size": experts.width,
        # Softmax over the chosen experts alone is the renormalised softmax over all.
        "moe_router_pre_softmax": not experts.renormalised,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
    }


def _inverse_frequencies(config: HFConfig, model: ModelConfig) -> Tensor:
    """[d / 2] rotary frequencies by transformers' own formulas, with the configured base.

    Raises:
        ConversionError: a scaling that depends on the sequence or also scales attention scores.
    """
    rope: dict[str, Any] = dict(config.rope_parameters)
    if model.rope_theta is not None:
        rope["rope_theta"] = model.rope_theta
    kind = rope.get("rope_type", "default")
    fields = rope.keys() - {"rope_type", "rope_theta", "type"}
    if kind not in _ROPE_FIELDS or fields - _ROPE_FIELDS[kind]:
        raise ConversionError(
            "config.json rope_parameters",
            f"the rotary embedding '{kind}' with {', '.join(sorted(fields))} is not implemented.",
            f"Use a checkpoint with {', '.join(_ROPE_FIELDS)}; of those, only the usual fields.",
        )
    if kind == "default":
        width = head_width(config)
        exponent = torch.arange(0, width, 2, dtype=torch.int64).float() / width
        return 1.0 / rope["rope_theta"] ** exponent
    chosen = copy.deepcopy(config)
    chosen.rope_parameters = rope
    frequencies, _ = ROPE_INIT_FUNCTIONS[kind](chosen, torch.device("cpu"))
    return frequencies
