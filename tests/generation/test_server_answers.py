from typing import Any

import pytest

from megatron_reason.errors import EngineDiedError
from megatron_reason.generation.server_answers import (
    Answer,
    Choice,
    finish_of,
    parsed,
    response_of,
    scores_of,
)
from megatron_reason.schema.records import Finish

CHOICE: dict[str, Any] = {
    "token_ids": [7, 8], "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -2}]},
    "finish_reason": "stop", "weight_versions": [{"version": "a"}, {"version": "a"}],
}  # fmt: skip


def choice(**changes: object) -> Choice:
    return parsed({**CHOICE, **changes}, Choice, "url", "path")


def test_a_response_is_its_tokens_log_probs_and_end() -> None:
    assert response_of(choice(), "url") == ((7, 8), (-0.5, -2.0), Finish.STOP)
    assert response_of(choice(finish_reason="length"), "url")[2] == Finish.LENGTH
    assert choice().versions() == {"a"}
    assert choice(weight_versions=[{"version": "b"}, {"version": "a"}]).versions() == {"a", "b"}


@pytest.mark.parametrize(
    "changes", [{"logprobs": None}, {"token_ids": [7]}, {"token_ids": [], "logprobs": None}]
)
def test_tokens_and_log_probs_have_to_match(changes: dict[str, object]) -> None:
    with pytest.raises(EngineDiedError, match="tokens with"):
        response_of(choice(**changes), "url")


def test_an_answer_that_was_given_up_is_no_answer_cut_at_its_limit() -> None:
    with pytest.raises(EngineDiedError, match="ended an answer with 'abort'"):
        finish_of("url", "abort")


def test_scores_are_those_of_the_tokens_that_were_asked() -> None:
    told = [None, {"8": {"logprob": -1}, "9": {"logprob": -3}}, {"5": {"logprob": -4}}]
    answer = parsed({"choices": [CHOICE], "prompt_logprobs": told}, Answer, "url", "path")
    assert scores_of(answer, [7, 8, 5], "url") == [-1.0, -4.0]
    for ids in ([7, 8], [7, 8, 6], [7, 8, 5, 5]):
        with pytest.raises(EngineDiedError, match="were asked"):
            scores_of(answer, ids, "url")


def test_another_form_is_named_by_its_place() -> None:
    with pytest.raises(EngineDiedError, match=r"to 'path' cannot be read \(finish_reason: "):
        choice(finish_reason=None)
    with pytest.raises(EngineDiedError, match="all of it"):
        parsed(None, Choice, "url", "path")
