"""The keeper around transformers' own engine on a tiny random model, and deaths on demand."""

import json

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.errors import GenerationError
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
    first = tokens(keeper.open(folders[0]))
    engine = keeper._engine
    assert first == fresh(folders[0])
    second = tokens(keeper.open(folders[1]))
    assert second == fresh(folders[1]) != first
    assert keeper._engine is engine
    assert keeper.policy_version == 1
    assert tokens(keeper.open(folders[1])) == second
    assert keeper.policy_version == 1


def test_another_architecture_gets_a_new_engine(keeper, folders):
    keeper.open(folders[0])
    engine = keeper._engine
    assert tokens(keeper.open(folders[2])) == fresh(folders[2])
    assert keeper._engine is not engine


def dying(monkeypatch, deaths):
    """Make the engines die in the middle of their first `deaths` requests."""
    real = HFEngine.generate
    left = [deaths]

    def generate(self, prompts, sampling, *, stop_token_ids=(), on_done=None):
        if left[0]:
            left[0] -= 1
            if on_done:
                on_done(1)
            raise GenerationError("engine", "it died.", "-")
        return real(self, prompts, sampling, stop_token_ids=stop_token_ids, on_done=on_done)

    monkeypatch.setattr(HFEngine, "generate", generate)


def test_an_engine_that_dies_is_replaced_once_and_progress_is_counted_once(
    keeper, folders, monkeypatch
):
    expected = fresh(folders[1])
    keeper.open(folders[0])
    keeper.open(folders[1])
    dying(monkeypatch, deaths=1)
    seen = []
    answers = keeper.generate(PROMPTS, GREEDY, on_done=seen.append)
    assert [[c.token_ids for c in drawn] for drawn in answers] == expected
    assert sum(seen) == len(PROMPTS)


def test_an_engine_that_dies_twice_is_given_up(keeper, folders, monkeypatch):
    keeper.open(folders[0])
    dying(monkeypatch, deaths=2)
    with pytest.raises(GenerationError, match="it died"):
        keeper.generate(PROMPTS, GREEDY)


def test_a_prompt_that_cannot_be_answered_costs_no_restart(keeper, folders):
    engine = keeper.open(folders[0])
    inner = keeper._engine
    with pytest.raises(GenerationError, match="max_model_len"):
        engine.generate([[1] * 40], GREEDY)
    assert keeper._engine is inner
