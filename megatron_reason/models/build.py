"""HF config -> Megatron TransformerConfig -> this rank's pipeline stage of a GPTModel.

The stage returns hidden states, never logits: the LM head is evaluated together with the loss, by
`ops/token_stats.py`. Not here: weights (`importer.py`).
"""

import copy
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import ConversionError, TopologyError
from megatron_reason.files import read_json
from megatron_reason.models.architecture import (
    Architecture,
    HFConfig,
    Shape,
    architecture_of,
    head_width,
)
from megatron_reason.models.attention import PackedAttention
from megatron_reason.schema.topology import Topology


class Stage(GPTModel):
    """One pipeline stage of a decoder; the last one returns hidden states after the final norm."""

    hf_vocab_size: int
    """Vocabulary of the checkpoint, without the padding that makes it divisible by TP."""

    def _postprocess(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:  # noqa: ANN401
        return hidden_states


def read_architecture(folder: Path) -> tuple[HFConfig, Architecture]:
    """Configuration and family of the checkpoint in `folder`.

    Raises:
        ConversionError: no config.json, or one that no family covers.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConversionError(
            str(folder),
            "there is no config.json here.",
            "Point model.path to a Hugging Face folder or a hub id.",
        )
    config = AutoConfig.from_pretrained(folder)
    return config, architecture_of(config, read_json(path))


def check_topology(config: HFConfig, parallel: ParallelConfig) -> None:
    """Refuse layouts that a model's sizes do not allow; needs no process group.

    Raises:
        TopologyError: heads, KV groups, the MLP or the layers cannot be split as asked.
    """
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % tp or groups % tp or config.intermediate_size % tp:
        fits = [n for n in range(1, groups + 1)
                if not (heads % n or groups % n or config.intermediate_size % n)]  # fmt: skip
        raise TopologyError(
            "parallel.tensor_model_parallel_size",
            f"{heads} attention heads, {groups} KV groups and an MLP of {config.intermediate_size} "
            f"cannot all be split over {tp} tensor-parallel ranks.",
            f"Use one of {', '.join(map(str, fits))}; to save more memory add pipeline stages.",
        )
    if config.num_hidden_layers % pp:
        fits = [n for n in range(1, config.num_hidden_layers + 1)
                if config.num_hidden_layers % n == 0]  # fmt: skip
        raise TopologyError(
            "parallel.pipeline_model_parallel_size",
            f"{config.num_hidden_layers} layers cannot be split evenly over {pp} stages.",
            f"Use one of {', '.join(map(str, fits))}.",
        )


def build_model(
    hf_folder: Path, model: ModelConfig, parallel: ParallelConfig, topology: Topology
) -> Stage:
    """This rank's stage, with uninitialised weights of the configured data type.

    Args:
        hf_folder: checkpoint whose shape is built.
        model: data type, rotary base.
        parallel: layout; must be the one `topology` was made from.
        topology: this rank's place.

    Raises:
        ConversionError: a configuration no family covers.
        TopologyError: sizes that the layout cannot split.
    """
    config, architecture = read_architecture(hf_folder)
    check_topology(config, parallel)
    shape = architecture.shape(config)
    dtype = getattr(torch, model.dtype)
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=shape.qk_norm)
    spec.submodules.self_attention.submodules.core_attention = ModuleSpec(module=PackedAttention)
    stage = Stage(
        config=_transformer_config(config, shape, parallel, dtype),
        transformer_layer_spec=spec,
        vocab_size=config.vocab_size + -config.vocab_size % topology.tp_size,
        max_sequence_length=model.context_length or config.max_position_embeddings,
        pre_process=topology.is_first_stage,
        post_process=topology.is_last_stage,
        share_embeddings_and_output_weights=shape.tied,
        position_embedding_type="rope",
    )
    stage.hf_vocab_size = config.vocab_size
    _mark_shards(stage)
    stage.rotary_pos_emb.inv_freq = _inverse_frequencies(config, model)
    # The distributed optimizer maps parameters to buffers by one data type: norms included.
    return stage.to(dtype)


def head_weight(model: nn.Module) -> Tensor:
    """[V_padded / tp, D]: this rank's rows of the LM head; last pipeline stage only."""
    stage = _stage(model)
    if stage.share_embeddings_and_output_weights:
        return stage.shared_embedding_or_output_weight()
    return stage.output_layer.weight


def vocab_size(model: nn.Module) -> int:
    """Vocabulary of the checkpoint, without padding."""
    return _stage(model).hf_vocab_size


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


def _stage(model: nn.Module) -> Stage:
    while not isinstance(model, Stage):
        model = model.module
    return model


def _transformer_config(
    config: HFConfig, shape: Shape, parallel: ParallelConfig, dtype: torch.dtype
) -> TransformerConfig:
    recompute: dict[str, Any] = {}
    if parallel.recompute == "full":
        recompute = {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
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
        sequence_parallel=parallel.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        autocast_dtype=dtype,
        variable_seq_lengths=True,
        # Read by no dense model, but variable lengths are refused with the default dispatcher.
        moe_token_dispatcher_type="alltoall",
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
        **recompute,
    )


def _inverse_frequencies(config: HFConfig, model: ModelConfig) -> Tensor:
    """Rotary frequencies by transformers' own formula, with the configured base.

    Raises:
        ConversionError: a scaling that also scales the attention scores (YaRN).
    """
    chosen = copy.deepcopy(config)
    rope: dict[str, Any] = dict(chosen.rope_parameters)
    if model.rope_theta is not None:
        rope["rope_theta"] = model.rope_theta
    kind = rope.get("rope_type", "default")
    if kind == "default":
        width = head_width(config)
        exponent = torch.arange(0, width, 2, dtype=torch.int64).float() / width
        return 1.0 / rope["rope_theta"] ** exponent
    chosen.rope_parameters = rope
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[kind](chosen, torch.device("cpu"))
    if attention_factor != 1.0:
        raise ConversionError(
            "config.json rope_parameters",
            f"rope_type '{kind}' scales attention scores by {attention_factor}.",
            "Use a checkpoint with default, linear or llama3 rotary embeddings.",
        )
    return frequencies
