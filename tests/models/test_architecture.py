from collections import Counter

import pytest
import torch
import transformers
from transformers import Qwen2Config

from megatron_reason.errors import ConversionError
from megatron_reason.models.architecture import (
    ARCHITECTURES,
    QKV,
    GateUp,
    Shape,
    architecture_of,
    decoder_params,
    match,
)

CONFIG = Qwen2Config(hidden_size=24, num_attention_heads=6, num_key_value_heads=2)


@pytest.mark.parametrize("columns", [(), (24,)])
def test_qkv_interleaves_by_group_and_is_its_own_inverse(columns: tuple[int, ...]) -> None:
    rule = QKV("a", "self_attn.{x}_proj")
    query = torch.arange(24.0).reshape(24, *[1] * len(columns)).expand(24, *columns)
    parts = [query, query[:8] + 100, query[:8] + 200]
    whole = rule.to_megatron(parts, CONFIG)
    heads = whole.reshape(10, 4, -1)[:, 0, 0].tolist()
    assert heads == [0, 4, 8, 100, 200, 12, 16, 20, 104, 204]
    assert all(torch.equal(a, b) for a, b in zip(rule.to_hf(whole, CONFIG), parts, strict=True))


def test_gate_and_up_are_two_blocks() -> None:
    rule = GateUp("a", "mlp.{x}_proj")
    gate, up = torch.ones(3, 2), torch.zeros(3, 2)
    assert rule.hf == ("mlp.gate_proj", "mlp.up_proj")
    back = rule.to_hf(rule.to_megatron([gate, up], CONFIG), CONFIG)
    assert torch.equal(back[0], gate)
    assert torch.equal(back[1], up)


def test_a_parameter_without_a_rule_is_named() -> None:
    rules = decoder_params(Shape())
    rule, layer = match(rules, "decoder.layers.12.mlp.linear_fc2.weight")
    assert (rule.hf, layer) == (("model.layers.{i}.mlp.down_proj.weight",), "12")
    with pytest.raises(ConversionError, match=r"decoder\.layers\.0\.router"):
        match(rules, "decoder.layers.0.router.weight")


def test_the_families_are_discovered() -> None:
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"} <= set(
        ARCHITECTURES.names()
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_every_tensor_has_exactly_one_rule(name: str, tied: bool) -> None:
    model_class = getattr(transformers, name)
    config = model_class.config_class(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=67, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        expected = Counter(model_class(config).state_dict().keys())
    rules = ARCHITECTURES.get(name).rules(config)
    found = Counter(
        hf.replace("{i}", str(layer))
        for rule in rules
        for hf in rule.hf
        for layer in (range(2) if "{i}" in hf else range(1))
    )
    if tied:
        del expected["lm_head.weight"]
        expected["model.embed_tokens.weight"] += 1
    assert found == expected
    assert len({rule.megatron for rule in rules}) == len(rules)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("logit_scale", 2.0, "nothing reads the fields logit_scale of a Qwen2ForCausalLM"),
        ("quantization_config", {}, "nothing reads the fields quantization_config"),
        ("hidden_act", "gelu", "hidden_act = 'gelu' is not implemented"),
        ("use_sliding_window", True, "use_sliding_window = True is not implemented"),
    ],
)
def test_fields_that_change_the_model_are_refused(field: str, value: object, message: str) -> None:
    raw = {**CONFIG.to_dict(), "architectures": ["Qwen2ForCausalLM"]}
    assert architecture_of(CONFIG, raw).hf_class == "Qwen2ForCausalLM"
    with pytest.raises(ConversionError, match=message):
        architecture_of(CONFIG, {**raw, field: value})
