from pathlib import Path

import polars as pl
import pytest

from megatron_reason.config.template import TemplateConfig
from megatron_reason.errors import DataError
from megatron_reason.evaluation.prompts import prompts_of
from megatron_reason.generation.templates import Template, load_template
from megatron_reason.schema.records import Message

PROBLEMS = pl.DataFrame(
    [
        {"problem_id": name, "messages": [{"role": "user", "content": text}]}
        for name, text in (("short", "1+1=?"), ("long", "1+1=? " * 20), ("longer", "1+1=? " * 30))
    ]
)


@pytest.fixture(scope="module")
def template(smollm2: Path) -> Template:
    return load_template(TemplateConfig(name="qwen_no_system"), smollm2)


def test_every_problem_that_fits_becomes_its_prompt(template: Template) -> None:
    prompts = prompts_of(PROBLEMS, template, max_model_len=1000, place="here")
    assert list(prompts) == ["short", "long", "longer"]
    assert prompts["short"] == template.prompt_ids([Message("user", "1+1=?")])


def test_room_for_one_token_is_enough_and_none_is_not(template: Template) -> None:
    size = len(template.prompt_ids([Message("user", "1+1=?")]))
    one = PROBLEMS.head(1)
    assert len(prompts_of(one, template, max_model_len=size + 1, place="here")["short"]) == size
    with pytest.raises(DataError, match=rf"1 of 1 .* first of them short \({size} tokens\)"):
        prompts_of(one, template, max_model_len=size, place="here")


def test_problems_that_do_not_fit_are_counted_and_named(template: Template) -> None:
    with pytest.raises(DataError, match=r"2 of 3 problems .* long \(.* longer \(") as refused:
        prompts_of(PROBLEMS, template, max_model_len=60, place="benchmark x")
    assert "benchmark x" in str(refused.value)
    assert "engine.max_model_len" in str(refused.value)
