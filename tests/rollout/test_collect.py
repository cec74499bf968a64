"""Collecting with a real engine and real graders."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.generation.hf_engine import HFEngine
from megatron_reason.generation.templates import load_template
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.rollout.collect import Collector
from megatron_reason.rollout.prompts import Prompt
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.records import Message, Problem
from tests.rollout import rewards_for_tests
from tools.make_tiny_model import make_tiny_model

SAMPLING = SamplingConfig(samples_per_prompt=3, max_tokens=24)


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory):
    assert rewards_for_tests
    folder: Path = make_tiny_model("Qwen2ForCausalLM", tmp_path_factory.mktemp("m") / "model")
    config = EngineConfig(name="transformers", max_model_len=64)
    with (
        HFEngine(folder, config, dtype="float32") as engine,
        AnswerPool(1, reward="slow_for_tests") as graders,
    ):
        graders.warm_up()
        yield Collector(engine, graders, load_template(TemplateConfig(), folder))


@pytest.fixture(scope="module")
def prompts(collector: Collector) -> list[Prompt]:
    problems = [Problem((Message("user", f"{n}+{n}="),), str(2 * n), "sums") for n in range(4)]
    demos = tuple(TokenizedSample(f"d{i}", Role.DEMO, (1, 65 + i), 1) for i in range(2))
    template = collector.template
    return [Prompt(p, tuple(template.prompt_ids(p.messages)), demos) for p in problems]


def test_groups_come_in_order_with_text_of_their_own_ids(collector: Collector, prompts):
    collected = collector.collect(prompts, SAMPLING, which_demo=1)
    assert [group.prompt for group in collected.groups] == prompts
    for group in collected.groups:
        assert len(group.rollouts) == 3
        assert group.demo is group.prompt.demos[1]
        assert group.demo_verdict is not None
        for rollout in group.rollouts:
            assert rollout.text == collector.template.decode(rollout.completion.token_ids)
            assert rollout.verdict.extracted == rollout.text[:8]
    none = collector.collect(prompts[:1], SAMPLING, which_demo=None).groups[0]
    assert none.demo is None
    assert none.demo_verdict is None


class Slow:
    """The engine, with a pause before it hands over a prompt's answers."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def stream(self, *asked: Any, **options: Any) -> Iterator[Any]:
        for done in self.engine.stream(*asked, **options):
            time.sleep(0.3)
            yield done


def test_a_group_is_graded_while_others_are_drawn(collector: Collector, prompts):
    """15 answers take 50 ms each to grade; those of the last prompt alone must be waited for."""
    # Other answers than before: equal ones are graded once.
    sampling = SAMPLING.model_copy(update={"seed": 99})
    asked = [*prompts, prompts[0]]
    slow = replace(collector, engine=cast(Any, Slow(collector.engine)))
    collected = slow.collect(asked, sampling, which_demo=None)
    assert [group.prompt for group in collected.groups] == asked
    assert collected.generate_s > 5 * 0.3
    assert 3 * 0.05 < collected.grade_s < 14 * 0.05
