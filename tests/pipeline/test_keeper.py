"""The keeper around transformers' own engine on a tiny random model."""

import json

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.generation.hf_engine import HFEngine
from megatron_reason.pipeline.keeper import EngineKeeper

GREEDY = SamplingConfig(samples_per_prompt=1, temperature=0.0, max_tokens=6)
PROMPTS = [[5, 6, 7], [8, 9]]


@pytest.fixture
def folders(tmp_path, smollm2):
    """Two tiny models that differ in weights only, and one that differs in its context, too."""
    made = []
    for seed, theta in ((1, 1e4), (2, 1e4), (3, 5e5)):
        torch.manual_seed(seed)
        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=64, rope_theta=theta, eos_token_id=None,
            bos_token_id=None, max_position_embeddings=64,
        )  # fmt: skip
        folder = tmp_path / f"model{seed}"
        model = LlamaForCausalLM(config)
        model.generation_config.eos_token_id = None
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
        written = json.loads((folder / "config.json").read_text())
        assert written["vocab_size"] == 64
        made.append(folder)
    return made


@pytest.fixture
def keeper(tmp_path):
    config = EngineConfig(name="transformers", max_model_len=32)
    with EngineKeeper(config, dtype="float32", log_folder=tmp_path / "logs") as keeper:
        yield keeper


def tokens(engine):
    return [[c.token_ids for c in drawn] for drawn in engine.generate(PROMPTS, GREEDY)]


def fresh(folder):
    config = EngineConfig(name="transformers", max_model_len=32)
    engine = HFEngine(folder, config, dtype="float32")
    try:
        return tokens(engine)
    finally:
        engine.close()


def test_weights_are_exchanged_in_one_engine(keeper, folders):
    engine = keeper.open(folders[0])
    first = tokens(engine)
    assert first == fresh(folders[0])
    assert keeper.open(folders[1]) is engine
    second = tokens(engine)
    assert second == fresh(folders[1]) != first
    assert engine.policy_version == 1
    assert tokens(keeper.open(folders[1])) == second
    assert engine.policy_version == 1


def test_another_architecture_gets_a_new_engine(keeper, folders):
    engine = keeper.open(folders[0])
    other = keeper.open(folders[2])
    assert other is not engine
    assert tokens(other) == fresh(folders[2])


def test_a_closed_engine_is_replaced(keeper, folders):
    engine = keeper.open(folders[0])
    engine.close()
    again = keeper.open(folders[0])
    assert again is not engine
    assert tokens(again) == fresh(folders[0])
