import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import Qwen2Config

from megatron_reason.errors import ConversionError
from megatron_reason.models.architecture import (
    ARCHITECTURES,
    Shape,
    architecture_of,
    read_architecture,
    why_ignored,
)
from tests.models import tiny

CONFIG = Qwen2Config(hidden_size=24, num_attention_heads=6, num_key_value_heads=2)


def test_the_families_are_discovered() -> None:
    assert {
        "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
    } <= set(ARCHITECTURES.names())  # fmt: skip


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_tensor_has_exactly_one_rule(family: str, tmp_path: Path) -> None:
    folder = tiny.make(family, tmp_path)
    config, architecture = read_architecture(folder)
    with safe_open(folder / "model.safetensors", framework="pt") as handle:
        expected = Counter(handle.keys())
    rules = architecture.rules(config)
    experts = architecture.shape(config).experts
    found = Counter(
        hf.replace("{i}", str(layer)).replace("{e}", str(expert))
        for rule in rules
        for hf in rule.hf
        for layer in range(config.num_hidden_layers if "{i}" in hf else 1)
        for expert in range(experts.count if experts and "{e}" in hf else 1)
    )
    if config.tie_word_embeddings:
        expected["model.embed_tokens.weight"] += 1
    assert found == expected
    assert len({rule.megatron for rule in rules}) == len(rules)


def test_a_tensor_is_ignored_for_a_reason_only() -> None:
    assert why_ignored("lm_head.weight", Shape()) is None
    assert why_ignored("lm_head.weight", Shape(tied=True)) is not None
    assert why_ignored("model.layers.3.self_attn.rotary_emb.inv_freq", Shape()) is not None
    assert why_ignored("model.layers.3.self_attn.q_proj.bias", Shape()) is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("logit_scale", 2.0, "nothing reads the fields logit_scale of a Qwen2ForCausalLM"),
        ("quantization_config", {}, "nothing reads the fields quantization_config"),
        ("hidden_act", "gelu", "hidden_act = 'gelu' is not implemented"),
        ("use_sliding_window", True, "use_sliding_window = True is not implemented"),
        ("layer_types", ["full_attention", "sliding_attention"], "layer_types has sliding_attent"),
    ],
)
def test_fields_that_change_the_model_are_refused(field: str, value: object, message: str) -> None:
    raw = {**CONFIG.to_dict(), "architectures": ["Qwen2ForCausalLM"]}
    assert architecture_of(CONFIG, raw).hf_class == "Qwen2ForCausalLM"
    with pytest.raises(ConversionError, match=message):
        architecture_of(CONFIG, {**raw, field: value})


COMMON = {
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "initializer_range": 0.02, "torch_dtype": "bfloat16", "transformers_version": "4.44.0",
    "use_cache": True,
}  # fmt: skip
LLAMA3_ROPE = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "DeepSeek-R1-Distill-Qwen-1.5B": {
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 1536, "intermediate_size": 8960,
        "max_position_embeddings": 131072, "max_window_layers": 21, "model_type": "qwen2",
        "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 10000, "sliding_window": 4096,
        "tie_word_embeddings": False, "use_mrope": False, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "DeepSeek-R1-Distill-Llama-8B": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0, "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
    "Mistral-7B-v0.3": {
        "architectures": ["MistralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
        "vocab_size": 32768,
    },
    "Qwen3-30B-A3B": {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False,
        "decoder_sparse_step": 1, "head_dim": 128, "hidden_size": 2048, "intermediate_size": 6144,
        "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
        "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False,
        "use_sliding_window": False, "vocab_size": 151936,
    },
}  # fmt: skip
"""config.json of published checkpoints in the words of older versions of transformers."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_configurations_as_they_were_published_are_read(name: str, tmp_path: Path) -> None:
    raw = {**COMMON, **PUBLISHED[name]}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config, architecture = read_architecture(tmp_path)
    assert architecture.hf_class == raw["architectures"][0]
    assert config.rope_parameters["rope_theta"] == raw["rope_theta"]
    assert config.rope_parameters["rope_type"] == (
        "llama3" if raw.get("rope_scaling") else "default"
    )
    experts = architecture.shape(config).experts
    assert (experts.count if experts else None) == raw.get("num_experts")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Mistral-7B-v0.3", {"sliding_window": 4096}, "sliding_window = 4096 is not implemented"),
        # transformers' default is a window where config.json has no such field.
        ("Mistral-7B-v0.3", {"sliding_window": ...}, "sliding_window = 4096 is not implemented"),
        ("Qwen3-30B-A3B", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2 is not"),
        ("Qwen3-30B-A3B", {"mlp_only_layers": [0]}, r"mlp_only_layers = \[0\] is not"),
        ("DeepSeek-R1-Distill-Llama-8B", {"num_experts": 8}, "nothing reads the fields num_exp"),
    ],
)
def test_what_a_family_does_not_implement_is_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    raw = {k: v for k, v in {**COMMON, **PUBLISHED[name], **changes}.items() if v is not ...}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConversionError, match=message):
        read_architecture(tmp_path)
