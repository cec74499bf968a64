"""What a model family is: the shape of its blocks, a table of parameter rules, fields it reads.

A family is one file in `families/`. Every field of a checkpoint's config.json is read by the
build, known not to matter, or refused by name; so is every tensor without a rule. Not here: any
family, how rows become shards (`layout.py`), and no Megatron, so that plans need none.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_reason.errors import ConversionError
from megatron_reason.files import read_json
from megatron_reason.models.layout import QKV, Copy, GateUp, HFConfig, Rule
from megatron_reason.registry import Registry


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of every MLP."""

    count: int
    """Experts in a layer."""
    per_token: int
    """Experts that see a token."""
    width: int
    """Width F of an expert's hidden layer."""
    renormalised: bool
    """Whether the weights of a token's experts sum to 1."""


@dataclass(frozen=True)
class Shape:
    """What distinguishes a family's blocks from those of another."""

    qkv_bias: bool = False
    """Whether the query, key and value projections have biases."""
    qk_norm: bool = False
    """Whether queries and keys are normalised per head."""
    tied: bool = False
    """Whether the LM head is the input embedding."""
    experts: Experts | None = None
    """The mixture of experts, if there is one."""


@dataclass(frozen=True)
class Architecture:
    """A model family."""

    hf_class: str
    """Class named in `architectures` of config.json."""
    shape: Callable[[HFConfig], Shape]
    """Shape of its blocks."""
    params: Callable[[Shape], Sequence[Rule]]
    """Its parameter table."""
    config_fields: frozenset[str]
    """Fields of config.json that the build reads; others must be harmless."""
    must_be: Mapping[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])
    """Further fields of config.json, each with the only values that the build implements."""

    def rules(self, config: HFConfig) -> list[Rule]:
        """Rules of a model with this configuration."""
        return list(self.params(self.shape(config)))


EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
ARCHITECTURES: Registry[Architecture] = Registry("model", "megatron_reason.models.families")

_HARMLESS = frozenset({
    "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "eos_token_id", "id2label", "initializer_range", "is_llama_config", "label2id",
    "layer_types", "max_position_embeddings", "max_window_layers", "model_type",
    "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict",
    "sliding_window", "torch_dtype", "transformers.js_config", "transformers_version",
    "unk_token_id", "use_cache",
})  # fmt: skip
_MUST_BE = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "attention_dropout": (0, 0.0),
    "is_encoder_decoder": (False,),
    "mlp_bias": (False,),
    "pretraining_tp": (1, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
    "use_sliding_window": (False, None),
}


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
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    return config, architecture_of(config, read_json(path))


def architecture_of(config: HFConfig, raw: Mapping[str, Any]) -> Architecture:
    """Family of a checkpoint.

    Args:
        config: its transformers configuration.
        raw: config.json as it stands on disk.

    Raises:
        ConversionError: no such family, a field that no rule reads, or a value that is not
            implemented.
    """
    name = (raw.get("architectures") or [type(config).__name__])[0]
    architecture = ARCHITECTURES.get(name, "config.json architectures")
    must_be = {**_MUST_BE, **architecture.must_be}
    covered = architecture.config_fields | _HARMLESS | must_be.keys()
    if unknown := sorted(name for name in raw.keys() - covered if not name.startswith("_")):
        raise ConversionError(
            "config.json",
            f"nothing reads the fields {', '.join(unknown)} of a {name}; the model might be "
            "computed wrongly.",
            "If they do not change the forward pass, list them in models/architecture.py.",
        )
    for key, allowed in must_be.items():
        # What config.json leaves out is transformers' default, which may be another value.
        value = raw[key] if key in raw else getattr(config, key, allowed[0])
        if key not in architecture.config_fields and value not in allowed:
            raise ConversionError(
                "config.json",
                f"{key} = {value!r} is not implemented for {name}; only "
                f"{' or '.join(map(repr, allowed))} is.",
                "Use a checkpoint without it, or extend models/build.py.",
            )
    if other := sorted(set(raw.get("layer_types") or ()) - {"full_attention"}):
        raise ConversionError(
            "config.json",
            f"layer_types has {', '.join(other)}; only full_attention is implemented.",
            "Use a checkpoint whose layers all attend to the whole sequence.",
        )
    return architecture


def why_ignored(name: str, shape: Shape) -> str | None:
    """Why a checkpoint may hold the tensor `name` although the model has no place for it.

    Returns:
        The reason, None for a tensor that must have its place.
    """
    if shape.tied and name == HEAD:
        return "config.json ties the LM head to the input embedding"
    if re.fullmatch(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", name):
        return "rotary frequencies are computed from config.json"
    return None


def decoder_params(shape: Shape) -> list[Rule]:
    """Table of the families that differ from Llama only in biases, query-key norms and experts."""
    layer, source = "decoder.layers.{i}.", "model.layers.{i}."
    rules: list[Rule] = [
        Copy("embedding.word_embeddings.weight", EMBEDDING, is_vocab=True),
        Copy(layer + "input_layernorm.weight", source + "input_layernorm.weight"),
        QKV(layer + "self_attention.linear_qkv.weight", source + "self_attn.{x}_proj.weight"),
        Copy(layer + "self_attention.linear_proj.weight", source + "self_attn.o_proj.weight"),
        Copy(layer + "pre_mlp_layernorm.weight", source + "post_attention_layernorm.weight"),
        Copy("decoder.final_layernorm.weight", "model.norm.weight"),
        Copy("output_layer.weight", EMBEDDING if shape.tied else HEAD, is_vocab=True),
    ]
    mlp = ("mlp.", "mlp.")
    if shape.experts:
        mlp = ("mlp.experts.local_experts.{e}.", "mlp.experts.{e}.")
        rules.append(Copy(layer + "mlp.router.weight", source + "mlp.gate.weight"))
    rules += [
        GateUp(layer + mlp[0] + "linear_fc1.weight", source + mlp[1] + "{x}_proj.weight"),
        Copy(layer + mlp[0] + "linear_fc2.weight", source + mlp[1] + "down_proj.weight"),
    ]
    if shape.qkv_bias:
        rules.append(
            QKV(layer + "self_attention.linear_qkv.bias", source + "self_attn.{x}_proj.bias")
        )
    if shape.qk_norm:
        rules += [
            Copy(
                layer + f"self_attention.{x}_layernorm.weight",
                source + f"self_attn.{x}_norm.weight",
            )
            for x in "qk"
        ]
    return rules


DECODER_FIELDS = frozenset({
    "head_dim", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
    "tie_word_embeddings", "vocab_size",
})  # fmt: skip
"""Fields of config.json that every family of `decoder_params` reads."""
