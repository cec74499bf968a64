"""Demonstrations rewritten for an update, by the scripted engine of the stage's own tests."""

from typing import Any, cast

import pytest

from megatron_reason.config.rewriting import RewritingConfig
from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.curation._rewriting import Rewriter
from megatron_reason.generation.templates import load_template
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.records import Message, Problem
from megatron_reason.training.retelling import Retelling
from tests.curation.test_rewrite import EXPERT, ScriptedEngine


def test_an_updates_demonstrations_become_the_policys_own_words(smollm2) -> None:
    template = load_template(TemplateConfig(), smollm2)
    problems = [Problem((Message("user", f"Problem {n}?"),), "2", "test") for n in range(5)]
    response = template.response_ids(EXPERT)
    samples: list[TokenizedSample] = []
    for number, problem in enumerate(problems):
        prompt = template.prompt_ids(problem.messages)
        ids = (*prompt, *response)
        samples.append(TokenizedSample(f"s{number}", Role.DEMO, ids, len(prompt)))
    negative = TokenizedSample("n", Role.NEGATIVE, (1, 2, 3), 1)
    settings = RewritingConfig(sampling=SamplingConfig(samples_per_prompt=3), copies="refuse")
    with AnswerPool(1) as pool:
        engine = cast(Any, ScriptedEngine(template))
        rewriter = Rewriter(engine, template, pool, settings, seed=0)
        retelling = Retelling(rewriter, {f"s{n}": problem for n, problem in enumerate(problems)})
        told, metrics = retelling([negative, *samples], seed=3)
    assert told[0] is negative
    # Solved alone, retold; the copy, the one that gives its prompt away and the failure stay.
    assert [one.sample_id for one in told[1:]] == ["s0/policy", "s1/rewritten", "s2", "s3", "s4"]
    for new, old in zip(told[1:], samples, strict=True):
        assert new.ids[: new.num_prompt_tokens] == old.ids[: old.num_prompt_tokens]
        assert new.role == Role.DEMO
    assert told[2].ids[told[2].num_prompt_tokens :] == tuple(
        template.response_ids("In my own words it is \\boxed{2}.")
    )
    assert told[3:] == samples[2:]
    means = metrics.means()
    assert means["rewrite/self"] == pytest.approx(0.2)
    assert means["rewrite/guided"] == pytest.approx(0.2)
    assert means["rewrite/fallback"] == pytest.approx(0.6)
    assert means["rewrite/overlap"] < 0.5
