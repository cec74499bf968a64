from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.errors import DataError
from megatron_reason.evaluation.token_scores import TokenScoreConfig, score_answers
from megatron_reason.generation.templates import load_template
from megatron_reason.schema.records import Message
from tests.evaluation.stored import write_evaluation
from tools.make_tiny_model import make_tiny_model

RIGHT = [[True, False], [False, True], [False, False]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("LlamaForCausalLM", tmp_path_factory.mktemp("model") / "tiny")


def config(model: Path, **changes) -> TokenScoreConfig:
    settings = {
        "model": ModelConfig(path=str(model), dtype="float32"),
        "template": TemplateConfig(name="qwen_no_system"),
    }
    return TokenScoreConfig.model_validate(settings | changes)


def test_scores_are_those_of_the_model_whatever_is_batched_together(model: Path, tmp_path: Path):
    answers = write_evaluation(tmp_path / "answers", RIGHT)
    scored = score_answers(answers, model, tmp_path / "out", config(model))
    assert len(scored) == 6
    assert pl.read_parquet(tmp_path / "out" / "token_scores.parquet").equals(scored)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    template = load_template(TemplateConfig(name="qwen_no_system"), model)
    problems = pl.read_parquet(answers / "problems.parquet")
    generations = pl.read_parquet(answers / "generations.parquet")
    for row in scored.to_dicts():
        (question,) = problems.filter(pl.col("problem_id") == row["problem_id"]).to_dicts()
        (answer,) = generations.filter(
            (pl.col("problem_id") == row["problem_id"])
            & (pl.col("sample_index") == row["sample_index"])
        ).to_dicts()
        prompt = template.prompt_ids([Message(**turn) for turn in question["messages"]])
        stop = template.tokenizer.convert_tokens_to_ids("<|im_end|>")
        response = [*template.tokenizer.encode(answer["response"]), stop]
        assert row["ids"] == response
        assert template.tokenizer.decode(response) == "".join(row["tokens"])
        with torch.no_grad():
            logits = plain(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(response)[:, None])[:, 0]
        assert row["logprobs"] == pytest.approx(expected.tolist(), abs=1e-4)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        assert row["entropies"] == pytest.approx(entropies.tolist(), abs=1e-4)
    alone = score_answers(answers, model, tmp_path / "two", config(model, max_tokens_per_batch=1))
    for one, other in zip(scored["logprobs"], alone["logprobs"], strict=True):
        assert one.to_list() == pytest.approx(other.to_list(), abs=1e-5)


def test_what_is_scored_can_be_chosen(model: Path, tmp_path: Path):
    answers = write_evaluation(tmp_path / "answers", RIGHT)
    wrong = score_answers(answers, model, tmp_path, config(model, where="wrong"))
    assert wrong["status"].to_list() == ["wrong"] * 4
    few = score_answers(answers, model, tmp_path, config(model, max_responses=3))
    assert few["sample_index"].to_list() == [0, 0, 0]
    with pytest.raises(DataError, match="at most 2 tokens"):
        score_answers(answers, model, tmp_path, config(model, max_tokens=2))
