"""Order and admission of prompts."""

from pathlib import Path

import pytest

from megatron_reason.config.template import TemplateConfig
from megatron_reason.errors import DataError
from megatron_reason.generation.templates import load_template
from megatron_reason.rollout.prompts import Admission, Prompt, PromptPool
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.records import Message, Problem
from megatron_reason.schema.tables import Quarantine
from tools.make_tiny_model import make_tiny_model

PROBLEMS = [Problem((Message("user", "1" * n),), "1", "ones") for n in (1, 2, 40)]


def pool(order) -> PromptPool:
    return PromptPool([Prompt(p, (n,)) for n, p in enumerate(PROBLEMS)], order, seed=4)


def taken(order, consumed: int, count: int) -> list[int]:
    return [prompt.ids[0] for prompt in pool(order).take(count, consumed=consumed)]


def test_the_stream_depends_on_what_was_taken_alone():
    assert taken("table", 0, 7) == [0, 1, 2, 0, 1, 2, 0]
    assert taken("table", 2, 2) == [2, 0]
    whole = taken("shuffled", 0, 9)
    assert [sorted(whole[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3
    assert taken("shuffled", 0, 4) + taken("shuffled", 4, 5) == whole
    assert [p.ids for p in pool("table").of([PROBLEMS[2].problem_id])] == [(2,)]


def test_what_cannot_be_answered_or_learnt_from_is_set_aside(tmp_path: Path):
    template = load_template(
        TemplateConfig(), make_tiny_model("Qwen2ForCausalLM", tmp_path / "model")
    )
    longest = len(template.prompt_ids(PROBLEMS[1].messages))
    demo = TokenizedSample("d", Role.DEMO, (1, 2), 1)
    demos = {PROBLEMS[1].problem_id: [demo], PROBLEMS[2].problem_id: [demo]}
    with Quarantine(tmp_path) as aside:
        kept = Admission(template, longest, demos).admit(PROBLEMS, aside)
    assert [prompt.problem for prompt in kept] == [PROBLEMS[1]]
    assert kept[0].demos == (demo,)
    assert aside.counts() == {"no demonstration": 1, "prompt too long": 1}
    with Quarantine(tmp_path) as aside:
        assert len(Admission(template, longest, None).admit(PROBLEMS, aside)) == 2
        with pytest.raises(DataError, match="none of 3 problems can be learnt from"):
            Admission(template, 3, None).admit(PROBLEMS, aside)
