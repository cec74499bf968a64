from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.errors import GenerationError
from megatron_reason.generation.hf_engine import HFEngine
from megatron_reason.schema.records import Finish
from tools.make_tiny_model import make_tiny_model

VOCABULARY = 8
PROMPTS = [[1], [3, 4, 5, 6, 7], [2, 3]]
CONFIG = EngineConfig(name="transformers", max_model_len=24, max_num_seqs=4)


def save_model(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        initializer_range=0.5, eos_token_id=7,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture
def engine(folder: Path) -> HFEngine:
    return HFEngine(folder, CONFIG, dtype="float32")


def logprob_of(folder: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def test_logprobs_ignore_padding_temperature_and_top_p(engine: HFEngine, folder: Path):
    sampling = SamplingConfig(temperature=0.5, top_p=0.9, max_tokens=6, samples_per_prompt=2)
    for prompt, row in zip(PROMPTS, engine.generate(PROMPTS, sampling), strict=True):
        for completion in row:
            logprob_TV = logprob_of(folder, [*prompt, *completion.token_ids])
            expected = [
                logprob_TV[len(prompt) - 1 + i, token].item()
                for i, token in enumerate(completion.token_ids)
            ]
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7)])
def test_draws_follow_the_distribution(folder: Path, temperature: float, top_p: float):
    num_draws = 4000
    sampling = SamplingConfig(
        temperature=temperature, top_p=top_p, max_tokens=1, samples_per_prompt=num_draws
    )
    wide = HFEngine(folder, CONFIG.model_copy(update={"max_num_seqs": 2000}), dtype="float32")
    (row,) = wide.generate([[1]], sampling)
    drawn = Counter(completion.token_ids[0] for completion in row)
    prob = (logprob_of(folder, [1])[-1] / temperature).softmax(-1)
    order = prob.argsort(descending=True).tolist()
    kept, mass = [], 0.0
    for token in order:
        if mass >= top_p:
            break
        kept.append(token)
        mass += prob[token].item()
    expected = {token: prob[token].item() / mass for token in kept}
    assert set(drawn) <= set(expected)
    for token, share in expected.items():
        tolerance = 4 * (share * (1 - share) / num_draws) ** 0.5
        assert drawn[token] / num_draws == pytest.approx(share, abs=tolerance)


def test_draws_do_not_depend_on_the_batch(engine: HFEngine):
    sampling = SamplingConfig(samples_per_prompt=2, max_tokens=8)
    done: list[int] = []
    whole = engine.generate(PROMPTS, sampling, on_done=done.append)
    assert sum(done) == 3
    for prompt, row in zip(PROMPTS, whole, strict=True):
        (alone,) = engine.generate([prompt], sampling)
        assert [c.token_ids for c in alone] == [c.token_ids for c in row]


def test_greedy_stops_and_limits(engine: HFEngine):
    greedy = SamplingConfig(temperature=0.0, max_tokens=100)
    ((free,),) = engine.generate([[1, 2]], greedy)
    assert free.finish is Finish.LENGTH
    assert len(free.token_ids) == CONFIG.max_model_len - 2
    stop = free.token_ids[3]
    ((stopped,),) = engine.generate([[1, 2]], greedy, stop_token_ids=[stop])
    end = free.token_ids.index(stop) + 1
    assert stopped.token_ids == free.token_ids[:end]
    assert stopped.finish is Finish.STOP
    assert len(stopped.logprobs) == end


def test_logprobs_of_the_sampler_are_those_drawn_from(folder: Path):
    sampling = SamplingConfig(temperature=0.5, top_p=0.9, max_tokens=6)
    config = CONFIG.model_copy(update={"logprobs": "sampler"})
    with HFEngine(folder, config, dtype="float32") as engine:
        rows = engine.generate(PROMPTS, sampling)
    for prompt, (completion,) in zip(PROMPTS, rows, strict=True):
        logits_TV = logprob_of(folder, [*prompt, *completion.token_ids]) / sampling.temperature
        for place, (token, told) in enumerate(
            zip(completion.token_ids, completion.logprobs, strict=True)
        ):
            ordered, order = logits_TV[len(prompt) - 1 + place].softmax(-1).sort(descending=True)
            kept = int((ordered.cumsum(0) - ordered < sampling.top_p).sum())
            at = order.tolist().index(token)
            assert told == pytest.approx(
                (ordered[at] / ordered[:kept].sum()).log().item(), abs=1e-4
            )


def test_given_tokens_are_scored(engine: HFEngine, folder: Path):
    sequences = [[1, 2, 3, 4], [5, 6]]
    for ids, row in zip(sequences, engine.score(sequences), strict=True):
        logprob_TV = logprob_of(folder, ids)
        expected = [logprob_TV[at, token].item() for at, token in enumerate(ids[1:])]
        assert row == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["LlamaForCausalLM-tied", "Qwen3MoeForCausalLM-untied"])
def test_update_weights_equals_a_fresh_engine(tmp_path: Path, family: str):
    hf_class = family.split("-")[0]
    tied = family.endswith("-tied")
    old = make_tiny_model(hf_class, tmp_path / "old", seed=1, tie_word_embeddings=tied)
    new = make_tiny_model(hf_class, tmp_path / "new", seed=2, tie_word_embeddings=tied)
    tensors = load_file(new / "model.safetensors")
    names = sorted(tensors)
    half = len(names) // 2
    parts = [{name: tensors[name] for name in part} for part in (names[:half], names[half:])]
    sampling = SamplingConfig(max_tokens=8)
    with HFEngine(old, CONFIG, dtype="float32") as engine:
        before = engine.weights
        engine.update_weights(parts, version=7)
        assert engine.policy_version == 7
        assert engine.weights != before
        found = engine.generate(PROMPTS, sampling)
    with HFEngine(new, CONFIG, dtype="float32") as fresh:
        expected = fresh.generate(PROMPTS, sampling)
    for (one,), (other,) in zip(found, expected, strict=True):
        assert (one.token_ids, one.logprobs) == (other.token_ids, other.logprobs)
        assert one.policy_version == 7


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "1 tensors did not come"),
        (lambda tensors: tensors.update({"model.norm.bias": torch.zeros(16)}), "model.norm.bias"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(17)}), r"\(17,\)"),
    ],
)
def test_other_tensors_are_refused_and_half_new_weights_never_answer(
    engine: HFEngine, folder: Path, spoil: Callable[[dict[str, torch.Tensor]], None], told: str
):
    tensors = load_file(folder / "model.safetensors")
    spoil(tensors)
    with pytest.raises(GenerationError, match=told):
        engine.update_weights([tensors], version=1)
    with pytest.raises(GenerationError, match="closed"):
        engine.generate(PROMPTS, SamplingConfig(max_tokens=1))


def test_sleep_has_to_be_asked_for(engine: HFEngine, folder: Path):
    with pytest.raises(GenerationError, match="sleep_mode"):
        engine.sleep()
    greedy = SamplingConfig(temperature=0.0, max_tokens=4)
    config = CONFIG.model_copy(update={"sleep_mode": True})
    with HFEngine(folder, config, dtype="float32") as sleeper:
        sleeper.sleep()
        sleeper.wake()
        assert sleeper.generate(PROMPTS, greedy) == engine.generate(PROMPTS, greedy)


def test_load_weights_and_close(engine: HFEngine, tmp_path: Path):
    greedy = SamplingConfig(temperature=0.0, max_tokens=8)
    other = save_model(tmp_path / "other", seed=1)
    expected = HFEngine(other, CONFIG, dtype="float32").generate(PROMPTS, greedy)
    before = engine.generate(PROMPTS, greedy)
    engine.load_weights(other)
    after = engine.generate(PROMPTS, greedy)
    assert [r[0].token_ids for r in after] == [r[0].token_ids for r in expected]
    assert [r[0].token_ids for r in after] != [r[0].token_ids for r in before]
    assert engine.policy_version == after[0][0].policy_version == 1
    with pytest.raises(GenerationError, match="24 tokens"):
        engine.generate([[1] * 24], greedy)
    engine.close()
    with pytest.raises(GenerationError, match="closed"):
        engine.generate(PROMPTS, greedy)
