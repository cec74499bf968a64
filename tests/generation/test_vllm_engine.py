import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.errors import EngineDiedError, GenerationError, PlatformError
from megatron_reason.files import read_json, write_json
from megatron_reason.generation.base import Completion
from megatron_reason.generation.templates import Template, load_template
from megatron_reason.generation.vllm_engine import VllmEngine
from megatron_reason.schema.records import Finish, Message

pytest.importorskip("vllm")

SMALL = EngineConfig(max_model_len=512, max_num_seqs=16, kv_cache_mb=128)
GREEDY = SamplingConfig(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def template(smollm2: Path) -> Template:
    return load_template(TemplateConfig(), smollm2)


@pytest.fixture(scope="module")
def prompts(template: Template) -> list[list[int]]:
    questions = ("What is 2+2?", "Name the capital of France.", "Count from one to five.")
    return [template.prompt_ids([Message("user", question)]) for question in questions]


@pytest.fixture(scope="module")
def perturbed(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with every tensor disturbed, the tied embedding included."""
    folder = tmp_path_factory.mktemp("perturbed")
    for path in smollm2.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder / path.name)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: value + 0.1 * value.std() * torch.randn(value.shape, generator=generator)
        for name, value in load_file(smollm2 / "model.safetensors").items()
    }
    save_file(
        {name: value.bfloat16() for name, value in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def test_logprobs_are_those_of_transformers(
    vllm_engine: VllmEngine, smollm2: Path, prompts: list[list[int]]
):
    sampling = SamplingConfig(temperature=0.7, top_p=0.9, max_tokens=12)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    for prompt, (completion,) in zip(prompts, vllm_engine.generate(prompts, sampling), strict=True):
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        with torch.inference_mode():
            logprob = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logprob.gather(1, ids[0, len(prompt) :, None])[:, 0]
        # bfloat16 against float32; log-probs after temperature or top-p would be far off.
        assert (expected - torch.tensor(completion.logprobs)).abs().max() < 0.25


def test_its_flags_are_what_vllm_was_started_with(vllm_engine: VllmEngine):
    assert vllm_engine.flags["enable_prefix_caching"] is True
    assert vllm_engine.flags["enforce_eager"] is True
    assert {"model", "dtype", "max_model_len"}.isdisjoint(vllm_engine.flags)


def test_finish_reasons_and_stop_tokens(
    vllm_engine: VllmEngine, template: Template, prompts: list[list[int]]
):
    sampling = SamplingConfig(temperature=0.0, max_tokens=40)
    # Both with the prompt's keys kept, which changes the last digits.
    vllm_engine.generate(prompts[:1], sampling)
    ((stopped,), *_) = vllm_engine.generate(
        prompts[:1], sampling, stop_token_ids=template.stop_token_ids
    )
    assert stopped.finish is Finish.STOP
    assert stopped.token_ids[-1] in template.stop_token_ids
    assert not set(stopped.token_ids[:-1]) & set(template.stop_token_ids)
    ((cut,),) = vllm_engine.generate(prompts[:1], sampling)
    assert cut.finish is Finish.LENGTH
    assert len(cut.token_ids) == len(cut.logprobs) == 40
    assert cut.token_ids[: len(stopped.token_ids)] == stopped.token_ids


def test_draws_differ_between_samples_and_repeat_with_the_seed(
    vllm_engine: VllmEngine, prompts: list[list[int]]
):
    sampling = SamplingConfig(samples_per_prompt=3, max_tokens=8, seed=5)
    done: list[int] = []
    first = vllm_engine.generate(prompts, sampling, on_done=done.append)
    assert sum(done) == len(prompts)
    assert [len(row) for row in first] == [3, 3, 3]
    assert len({completion.token_ids for row in first for completion in row}) > 6
    # In one company, and with the prompt's keys kept: both change the last digits.
    _, once, again = (ids_of(vllm_engine.generate(prompts[:1], sampling)) for _ in range(3))
    assert once == again
    other = vllm_engine.generate(prompts[:1], sampling.model_copy(update={"seed": 6}))
    assert ids_of(other) != once


def test_prompts_that_do_not_fit_are_refused(vllm_engine: VllmEngine):
    with pytest.raises(GenerationError, match=r"512 tokens; .* 512"):
        vllm_engine.generate([[1], [1] * 512], GREEDY)
    with pytest.raises(GenerationError, match="0 tokens"):
        vllm_engine.generate([[]], GREEDY)
    ((completion,),) = vllm_engine.generate([[504] * 508], GREEDY)
    assert len(completion.token_ids) == 4
    assert completion.finish is Finish.LENGTH


def test_more_prompts_than_fit_into_one_step(vllm_engine: VllmEngine, prompts: list[list[int]]):
    long = [prompt + [504 + index] * 300 for index, prompt in enumerate(prompts * 7)]
    completions = vllm_engine.generate(long, SamplingConfig(max_tokens=2))
    assert [len(row) for row in completions] == [1] * 21


def ids_of(rows: list[list[Completion]]) -> list[tuple[int, ...]]:
    return [completion.token_ids for row in rows for completion in row]


def test_new_weights_equal_a_fresh_engine(
    vllm_engine: VllmEngine,
    smollm2: Path,
    perturbed: Path,
    prompts: list[list[int]],
    tmp_path: Path,
):
    """From another folder, and from memory tensor by tensor, while the engine lives."""
    config = SMALL.model_copy(update={"max_restarts": 0})
    with VllmEngine(perturbed, config, dtype="bfloat16", log_folder=tmp_path) as fresh:
        expected = fresh.generate(prompts, GREEDY)
        scores = fresh.score(prompts)
        # The last use of this engine: kill it in the middle of its work.
        threading.Timer(1.0, os.kill, (fresh.pid, signal.SIGKILL)).start()
        started_s = time.monotonic()
        with pytest.raises(EngineDiedError, match=r"exit code -9") as caught:
            fresh.generate(prompts * 50, SamplingConfig(samples_per_prompt=8, max_tokens=400))
        assert time.monotonic() - started_s < 60
        assert str(tmp_path / "vllm.log") in str(caught.value)
        with pytest.raises(GenerationError, match="closed"):
            fresh.generate(prompts, GREEDY)
    # Kept keys and values change the last digits: none are kept.
    vllm_engine.load_weights(smollm2)
    before = vllm_engine.generate(prompts, GREEDY)
    assert ids_of(before) != ids_of(expected)
    version, weights = vllm_engine.policy_version, vllm_engine.weights
    vllm_engine.load_weights(perturbed)
    swapped = vllm_engine.generate(prompts, GREEDY)
    assert vllm_engine.policy_version == swapped[0][0].policy_version == version + 1
    assert vllm_engine.weights != weights
    assert ids_of(swapped) == ids_of(expected)
    assert vllm_engine.score(prompts) == scores
    for folder, answers in ((smollm2, before), (perturbed, expected)):
        vllm_engine.update_weights(in_parts(folder), version=version + 9)
        updated = vllm_engine.generate(prompts, GREEDY)
        assert ids_of(updated) == ids_of(answers)
        assert [c.logprobs for row in updated for c in row] == [
            c.logprobs for row in answers for c in row
        ]
        assert updated[0][0].policy_version == version + 9
    assert vllm_engine.score(prompts) == scores
    vllm_engine.load_weights(smollm2)
    assert ids_of(vllm_engine.generate(prompts, GREEDY)) == ids_of(before)
    assert vllm_engine.weights == weights


def in_parts(folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Tensors in an order that tears layers apart, in memory that is used again."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors, key=lambda name: name.split(".")[::-1])
    for begin in range(0, len(names), 40):
        part = {name: tensors[name] for name in names[begin : begin + 40]}
        yield part
        for tensor in part.values():
            tensor.zero_()


def test_given_tokens_are_scored_as_transformers_does(
    vllm_engine: VllmEngine, smollm2: Path, prompts: list[list[int]]
):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    for prompt, scores in zip(prompts, vllm_engine.score(prompts), strict=True):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            logprob_TV = model(ids).logits[0, :-1].log_softmax(-1)
        expected = logprob_TV.gather(1, ids[0, 1:, None])[:, 0]
        assert (expected - torch.tensor(scores)).abs().mean() < 0.1


def test_weights_of_another_architecture_are_refused(
    vllm_engine: VllmEngine, smollm2: Path, tmp_path: Path
):
    with pytest.raises(GenerationError, match=r"no config\.json"):
        vllm_engine.load_weights(tmp_path)
    config = read_json(smollm2 / "config.json")
    config["rope_parameters"]["rope_theta"] = 1e6
    write_json(tmp_path / "config.json", config)
    (tmp_path / "model.safetensors").symlink_to(smollm2 / "model.safetensors")
    with pytest.raises(GenerationError, match="rope_parameters"):
        vllm_engine.load_weights(tmp_path)


def test_engine_that_does_not_start_tells_why(smollm2: Path, tmp_path: Path):
    config = SMALL.model_copy(update={"start_timeout_s": 1.0})
    with pytest.raises(GenerationError, match="waited 1 s for the engine to start"):
        VllmEngine(smollm2, config, dtype="bfloat16", log_folder=tmp_path)


def test_sleep_is_refused_on_a_cpu(smollm2: Path, tmp_path: Path):
    config = SMALL.model_copy(update={"sleep_mode": True})
    with pytest.raises(PlatformError, match="sleep"):
        VllmEngine(smollm2, config, dtype="bfloat16", log_folder=tmp_path)
    assert not (tmp_path / "vllm.log").exists()
