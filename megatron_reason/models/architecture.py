"""What a model family is: the shape of its blocks and a table of parameter rules.

A rule knows layout only, in both directions: how Hugging Face's tensors become one Megatron tensor
and back. *Where* a shard goes is read from the parameter itself, *how bytes travel* is the
importer's and exporter's business. A family is one file in `families/`. Not here: any family, and
no Megatron, so that plans can be checked without it.

Layout words: H heads, G KV groups, d head width; Megatron's linear_qkv holds, for each KV group,
its query heads, then its key, then its value.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_reason.errors import ConversionError
from megatron_reason.files import read_json
from megatron_reason.registry import Registry

HFConfig = Any
"""A transformers configuration object."""


@dataclass(frozen=True)
class Shape:
    """What distinguishes a family's blocks from those of another."""

    qkv_bias: bool = False
    """Whether the query, key and value projections have biases."""
    qk_norm: bool = False
    """Whether queries and keys are normalised per head."""
    tied: bool = False
    """Whether the LM head is the input embedding."""


class Rule(Protocol):
    """One Megatron parameter and the Hugging Face tensors it is made of."""

    @property
    def megatron(self) -> str:
        """Megatron's name; `{i}` stands for the layer."""
        ...

    @property
    def hf(self) -> tuple[str, ...]:
        """Hugging Face's names, in order."""
        ...

    @property
    def num_blocks(self) -> int:
        """Equal parts along dimension 0 that are sharded one by one (gate and up: 2)."""
        ...

    @property
    def is_vocab(self) -> bool:
        """Whether dimension 0 is the vocabulary, padded in Megatron."""
        ...

    def to_megatron(self, tensors: Sequence[Tensor], config: HFConfig) -> Tensor:
        """Whole Megatron tensor from whole Hugging Face tensors."""
        ...

    def to_hf(self, tensor: Tensor, config: HFConfig) -> list[Tensor]:
        """Inverse of `to_megatron`."""
        ...


@dataclass(frozen=True)
class Copy:
    """The same tensor under another name."""

    megatron: str
    source: str
    is_vocab: bool = False
    num_blocks: int = 1

    @property
    def hf(self) -> tuple[str, ...]:
        """The one Hugging Face name."""
        return (self.source,)

    def to_megatron(self, tensors: Sequence[Tensor], config: HFConfig) -> Tensor:  # noqa: ARG002
        """The tensor itself."""
        return tensors[0]

    def to_hf(self, tensor: Tensor, config: HFConfig) -> list[Tensor]:  # noqa: ARG002
        """The tensor itself."""
        return [tensor]


@dataclass(frozen=True)
class QKV:
    """Query, key and value interleaved by KV group; weights [rows, D] and biases [rows] alike."""

    megatron: str
    source: str
    """Name with `{x}` for q, k and v."""
    is_vocab: bool = False
    num_blocks: int = 1

    @property
    def hf(self) -> tuple[str, ...]:
        """Names of the three projections."""
        return tuple(self.source.replace("{x}", part) for part in "qkv")

    def to_megatron(self, tensors: Sequence[Tensor], config: HFConfig) -> Tensor:
        """[H d], [G d], [G d] rows -> [G (H/G + 2) d] rows."""
        groups, width = config.num_key_value_heads, head_width(config)
        parts = [part.reshape(groups, -1, width, *part.shape[1:]) for part in tensors]
        return torch.cat(parts, dim=1).reshape(-1, *tensors[0].shape[1:])

    def to_hf(self, tensor: Tensor, config: HFConfig) -> list[Tensor]:
        """[G (H/G + 2) d] rows -> [H d], [G d], [G d] rows."""
        groups, width = config.num_key_value_heads, head_width(config)
        per_group = config.num_attention_heads // groups
        rows = tensor.reshape(groups, per_group + 2, width, *tensor.shape[1:])
        parts = rows.split([per_group, 1, 1], dim=1)
        return [part.reshape(-1, *tensor.shape[1:]).contiguous() for part in parts]


@dataclass(frozen=True)
class GateUp:
    """Gate over up, each sharded by itself."""

    megatron: str
    source: str
    """Name with `{x}` for gate and up."""
    is_vocab: bool = False
    num_blocks: int = 2

    @property
    def hf(self) -> tuple[str, ...]:
        """Names of the two projections."""
        return tuple(self.source.replace("{x}", part) for part in ("gate", "up"))

    def to_megatron(self, tensors: Sequence[Tensor], config: HFConfig) -> Tensor:  # noqa: ARG002
        """[F, D], [F, D] -> [2 F, D]."""
        return torch.cat(list(tensors))

    def to_hf(self, tensor: Tensor, config: HFConfig) -> list[Tensor]:  # noqa: ARG002
        """[2 F, D] -> [F, D], [F, D]."""
        return [part.contiguous() for part in tensor.chunk(2)]


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

    def rules(self, config: HFConfig) -> list[Rule]:
        """Rules of a model with this configuration."""
        return list(self.params(self.shape(config)))


ARCHITECTURES: Registry[Architecture] = Registry("model", "megatron_reason.models.families")

_HARMLESS = frozenset({
    "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "eos_token_id", "id2label", "initializer_range", "is_llama_config", "label2id", "layer_types",
    "max_position_embeddings", "max_window_layers", "model_type", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "sliding_window",
    "torch_dtype", "transformers.js_config", "transformers_version", "unk_token_id", "use_cache",
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
    covered = architecture.config_fields | _HARMLESS | _MUST_BE.keys()
    if unknown := sorted(name for name in raw.keys() - covered if not name.startswith("_")):
        raise ConversionError(
            "config.json",
            f"nothing reads the fields {', '.join(unknown)} of a {name}; the model might be "
            "computed wrongly.",
            "If they do not change the forward pass, list them in models/architecture.py.",
        )
    for field, allowed in _MUST_BE.items():
        value = raw.get(field, allowed[0])
        if field not in architecture.config_fields and value not in allowed:
            raise ConversionError(
                "config.json",
                f"{field} = {value!r} is not implemented for {name}; only {allowed} is.",
                "Use a checkpoint without it, or extend models/build.py.",
            )
    return architecture


def head_width(config: HFConfig) -> int:
    """Width d of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def match(rules: Sequence[Rule], name: str) -> tuple[Rule, str | None]:
    """Rule for a Megatron parameter with a global layer number, and that number as text.

    Raises:
        ConversionError: no rule covers the parameter.
    """
    for rule in rules:
        pattern = re.escape(rule.megatron).replace(r"\{i\}", r"(\d+)")
        if found := re.fullmatch(pattern, name):
            return rule, found.group(1) if found.groups() else None
    raise ConversionError(
        name,
        "no rule of this architecture covers the parameter.",
        "Add one to the family's table in megatron_reason/models/families/.",
    )


def decoder_params(shape: Shape) -> list[Rule]:
    """Table of the families that differ from Llama only in biases and query-key norms."""
    layer, source = "decoder.layers.{i}.", "model.layers.{i}."
    rules: list[Rule] = [
        Copy("embedding.word_embeddings.weight", "model.embed_tokens.weight", is_vocab=True),
        Copy(layer + "input_layernorm.weight", source + "input_layernorm.weight"),
        QKV(layer + "self_attention.linear_qkv.weight", source + "self_attn.{x}_proj.weight"),
        Copy(layer + "self_attention.linear_proj.weight", source + "self_attn.o_proj.weight"),
        Copy(layer + "pre_mlp_layernorm.weight", source + "post_attention_layernorm.weight"),
        GateUp(layer + "mlp.linear_fc1.weight", source + "mlp.{x}_proj.weight"),
        Copy(layer + "mlp.linear_fc2.weight", source + "mlp.down_proj.weight"),
        Copy("decoder.final_layernorm.weight", "model.norm.weight"),
        Copy(
            "output_layer.weight",
            "model.embed_tokens.weight" if shape.tied else "lm_head.weight",
            is_vocab=True,
        ),
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
