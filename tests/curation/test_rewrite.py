"""Rewriting with a scripted engine and a real tokenizer: stages, prompts, copies, resume."""

import polars as pl
import pytest
from pydantic import ValidationError

from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.curation.rewrite import Rewrite, RewriteConfig
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.files import read_json
from megatron_reason.generation.base import Completion
from megatron_reason.generation.templates import load_template
from megatron_reason.schema.records import Finish
from megatron_reason.schema.tables import Kind, read_table
from tests.curation.stages import context, sample, write_samples

EXPERT = "One adds one and one more with great care and then one has two. So \\boxed{2}."


class ScriptedEngine:
    """Solves problem 0 alone, retells 1, copies 2, gives its prompt away in 3, fails in 4."""

    def __init__(self, template):
        self.description = {"max_model_len": 2000}
        self.retold = {
            "Problem 1?": "In my own words it is \\boxed{2}.",
            "Problem 2?": EXPERT,
            "Problem 3?": "As the Reference Solution says, \\boxed{2}.",
        }
        self.template = template
        self.prompts = []
        self.fails_after = None

    def generate(self, prompts, sampling, *, stop_token_ids=()):
        assert stop_token_ids == self.template.stop_token_ids
        if self.fails_after is not None and len(self.prompts) >= self.fails_after:
            raise KeyboardInterrupt
        texts = [self.template.tokenizer.decode(prompt) for prompt in prompts]
        self.prompts += texts
        return [
            [self._completion(text, i) for i in range(sampling.samples_per_prompt)]
            for text in texts
        ]

    def _completion(self, prompt, index):
        question = next(f"Problem {n}?" for n in range(5) if f"Problem {n}?" in prompt)
        guided = EXPERT in prompt
        if guided:
            answer = self.retold.get(question, "\\boxed{3}")
        else:
            answer = f"Way {index}: \\boxed{{2}}" if question == "Problem 0?" else "\\boxed{5}"
        # The first sample is always right, and always cut: it must never be chosen.
        finish = Finish.LENGTH if index == 0 else Finish.STOP
        text = "\\boxed{2} and" if index == 0 else answer
        ids = self.template.tokenizer(text, add_special_tokens=False)["input_ids"]
        return Completion(tuple(ids), (0.0,) * len(ids), finish, 0)


@pytest.fixture
def engine(smollm2):
    return ScriptedEngine(load_template(TemplateConfig(), smollm2))


def rewrite(tmp_path, smollm2, engine, rows=None, **config):
    rows = rows or [sample(number, response=EXPERT, ppl=3.0) for number in range(5)]
    table = write_samples(tmp_path / "in", rows)
    config = RewriteConfig(
        name="own", table="in", sampling=SamplingConfig(samples_per_prompt=3), workers=1,
        seed=1, **config,
    )  # fmt: skip
    where = context(
        tmp_path / "out", {"in": table}, model_folder=smollm2, open_engine=lambda _: engine
    )
    result = Rewrite(config).run(where)
    return result, read_table(tmp_path / "out", Kind.SAMPLES)


def test_every_problem_goes_through_the_stages(tmp_path, smollm2, engine):
    result, rows = rewrite(tmp_path, smollm2, engine)
    assert rows["origin"].to_list() == ["policy", "rewritten", "rewritten", "expert", "expert"]
    assert rows["response"][0] in ("Way 1: \\boxed{2}", "Way 2: \\boxed{2}")
    assert rows["response"].to_list()[1:] == [engine.retold["Problem 1?"], *[EXPERT] * 3]
    # The training prompt stays plain, and old perplexities do not cling to new texts.
    assert [turns[0]["content"] for turns in rows["messages"]] == [
        f"Problem {number}?" for number in range(5)
    ]
    assert rows["ppl"].to_list() == [None, None, None, 3.0, 3.0]
    assert rows["status"].to_list() == ["ok"] * 3 + [None] * 2
    assert rows["sample_id"].n_unique() == 5
    counts = result.counts
    assert (counts["self"], counts["guided"], counts["fallback"]) == (1, 2, 2)
    assert (counts["copies"], counts["mentions_of_the_prompt"]) == (2, 2)
    assert counts["overlap_from_90_percent"] == counts["overlap_from_0_percent"] == 1
    assert read_json(tmp_path / "out" / "rewriting.json")["counts"] == counts


def test_copies_are_refused_where_that_is_asked_for(tmp_path, smollm2, engine):
    result, rows = rewrite(tmp_path, smollm2, engine, copies="refuse")
    assert rows["origin"].to_list() == ["policy", "rewritten", "expert", "expert", "expert"]
    assert result.counts["copies"] == 2


def test_only_the_unsolved_see_their_solution(tmp_path, smollm2, engine):
    rewrite(tmp_path, smollm2, engine)
    plain, guided = engine.prompts[:5], engine.prompts[5:]
    assert not any(EXPERT in prompt for prompt in plain)
    assert len(guided) == 4
    for number, prompt in enumerate(guided, start=1):
        assert f"Problem {number}?" in prompt
        assert EXPERT in prompt


def test_a_guided_prompt_that_does_not_fit_falls_back(tmp_path, smollm2, engine):
    engine.description = {"max_model_len": 60}
    result, rows = rewrite(tmp_path, smollm2, engine)
    assert rows["origin"].to_list() == ["policy"] + ["expert"] * 4
    assert result.counts["guided_prompt_too_long"] == 4


def test_a_plain_prompt_that_does_not_fit_falls_back_and_is_not_asked(tmp_path, smollm2, engine):
    engine.description = {"max_model_len": 10}
    result, rows = rewrite(tmp_path, smollm2, engine)
    assert rows["origin"].to_list() == ["expert"] * 5
    assert result.counts["guided_prompt_too_long"] == 5
    assert not engine.prompts


def test_goes_on_after_a_kill(tmp_path, smollm2, engine):
    engine.fails_after = 2
    with pytest.raises(KeyboardInterrupt):
        rewrite(tmp_path, smollm2, engine, problems_per_step=1)
    engine.fails_after = None
    before = len(engine.prompts)
    result, rows = rewrite(tmp_path, smollm2, engine, problems_per_step=1)
    # Problem 0 was done; problem 1 had its own attempt, but no retelling yet.
    assert not any("Problem 0?" in prompt for prompt in engine.prompts[before:])
    assert any("Problem 1?" in prompt for prompt in engine.prompts[before:])
    _, at_once = rewrite(tmp_path / "again", smollm2, engine)
    assert rows.equals(at_once)
    assert result.num_rows == 5


def test_refusals(tmp_path, smollm2, engine):
    twice = [sample(0, response=EXPERT), sample(1, problem=0, response=EXPERT)]
    with pytest.raises(DataError, match="1 rows of 'in' are further responses"):
        rewrite(tmp_path, smollm2, engine, rows=twice)
    with pytest.raises(ConfigError, match="is no folder"):
        rewrite(tmp_path, smollm2, engine, model="nowhere")
    for prompt in ("{problem}", "{problem} {solution} \\boxed{}", "{question}"):
        with pytest.raises(ValidationError, match="problem"):
            RewriteConfig(name="own", table="in", prompt=prompt)


def test_an_empty_table(tmp_path, smollm2, engine):
    write_samples(tmp_path / "in", [])
    config = RewriteConfig(name="own", table="in")
    where = context(tmp_path / "out", {"in": tmp_path / "in"}, model_folder=smollm2)
    assert Rewrite(config).run(where).num_rows == 0
    assert isinstance(read_table(tmp_path / "out", Kind.SAMPLES), pl.DataFrame)
