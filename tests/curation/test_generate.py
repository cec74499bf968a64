"""Generation from a scripted engine and a real tokenizer: which problems, which samples."""

from collections import Counter

import polars as pl
import pytest

from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.curation.filter import Filter, FilterConfig
from megatron_reason.curation.generate import Generate, GenerateConfig
from megatron_reason.curation.grade import Grade, GradeConfig
from megatron_reason.errors import ConfigError, DataError, GenerationError
from megatron_reason.generation.base import Completion
from megatron_reason.generation.templates import load_template
from megatron_reason.rewards import stated
from megatron_reason.schema.records import Finish, Message
from megatron_reason.schema.tables import Kind, read_table
from tests.curation.stages import context, sample, write_samples


class ScriptedEngine:
    """Answers every prompt with the same texts, the last one cut at its limit."""

    policy_version = 0

    def __init__(self, template, texts):
        self.template = template
        self.texts = texts
        self.prompts = []
        self.description = {"max_model_len": 100}

    def generate(self, prompts, sampling, *, stop_token_ids=(), on_done=None):
        assert sampling.samples_per_prompt == len(self.texts)
        assert stop_token_ids == self.template.stop_token_ids
        self.prompts += [tuple(prompt) for prompt in prompts]
        on_done(len(prompts))
        return [[self._completion(i) for i in range(len(self.texts))] for _ in prompts]

    def _completion(self, index):
        ids = self.template.tokenizer(self.texts[index], add_special_tokens=False)["input_ids"]
        cut = index == len(self.texts) - 1
        ids = tuple(ids) if cut else (*ids, self.template.stop_token_ids[0])
        finish = Finish.LENGTH if cut else Finish.STOP
        return Completion(ids, (0.0,) * len(ids), finish, 0)


def generate(tmp_path, smollm2, rows, texts, **config):
    inputs = {"in": write_samples(tmp_path / "in", rows)}
    template = load_template(config.get("template") or TemplateConfig(), smollm2)
    engine = ScriptedEngine(template, texts)
    opened = []

    def open_engine(folder):
        opened.append(folder)
        return engine

    config = GenerateConfig(
        name="own", table="in", sampling=SamplingConfig(samples_per_prompt=len(texts)), **config
    )
    result = Generate(config).run(
        context(tmp_path / "out", inputs, model_folder=smollm2, open_engine=open_engine)
    )
    assert opened == [smollm2]
    return result, read_table(tmp_path / "out", Kind.SAMPLES), engine, template


def test_answers_distinct_train_problems(tmp_path, smollm2):
    rows = [
        sample(0, problem=0),
        sample(1, problem=0),
        sample(2, problem=1, split="heldout"),
        sample(3, problem=2),
        sample(4, problem=3),
    ]
    texts = ["It is 2.", "  ", "It is 3, because"]
    result, samples, engine, template = generate(tmp_path, smollm2, rows, texts, max_problems=2)
    assert engine.prompts == [
        tuple(template.prompt_ids([Message("user", f"Problem {i}?")])) for i in (0, 2)
    ]
    assert samples["response"].to_list() == texts * 2
    assert samples["finish"].to_list() == ["stop", "stop", "length"] * 2
    assert set(samples["origin"]) == {"policy"}
    assert set(samples["generator"]) == {smollm2.name}
    assert set(samples["problem_id"]) == {rows[0].problem_id, rows[3].problem_id}
    assert samples["sample_id"].n_unique() == result.num_rows == 6
    assert result.counts["empty_responses"] == 2
    assert Counter(finish_stop=4, finish_length=2).items() <= dict(result.counts).items()


def test_an_empty_response_counts_as_wrong_in_a_pass_rate(tmp_path, smollm2):
    texts = ["It is 2.", "It is 2!", "", "It is 3."]
    generate(tmp_path, smollm2, [sample(0)], texts)
    folders = {name: tmp_path / name for name in ("out", "graded", "kept")}
    grade = GradeConfig(name="graded", table="out", reward="numeric", workers=1)
    Grade(grade).run(context(folders["graded"], folders))
    graded = read_table(folders["graded"], Kind.SAMPLES)
    assert graded["status"].to_list() == ["ok", "ok", "no_answer", "wrong"]
    band = FilterConfig(name="kept", table="graded", pass_rate=(0.5, 0.5), min_responses=4)
    result = Filter(band).run(context(folders["kept"], folders))
    assert read_table(folders["kept"], Kind.SAMPLES)["response"].to_list() == [
        "It is 2.", "It is 2!", "It is 3.",
    ]  # fmt: skip
    assert result.counts == {"shorter than min_characters": 1}


def test_refusals(tmp_path, smollm2):
    with pytest.raises(DataError, match="none of the train split"):
        generate(tmp_path / "a", smollm2, [sample(0, split="heldout")], ["x"])
    with pytest.raises(DataError, match="only empty responses"):
        generate(tmp_path / "b", smollm2, [sample(0)], [" ", "\n"])
    with pytest.raises(ConfigError, match="no folder"):
        generate(tmp_path / "c", smollm2, [sample(0)], ["x"], model="no/such/model")


class DyingEngine(ScriptedEngine):
    """Answers so many calls, then dies."""

    calls = 2

    def generate(self, *args, **kwargs):
        if not self.calls:
            raise GenerationError("engine", "it died.", "Start it again.")
        self.calls -= 1
        return super().generate(*args, **kwargs)


def test_goes_on_where_it_died_and_shards_make_the_whole(tmp_path, smollm2):
    rows = [sample(i, problem=i // 2, split="heldout" if i == 2 else "train") for i in range(11)]
    inputs = {"in": write_samples(tmp_path / "in", rows)}
    template = load_template(TemplateConfig(), smollm2)

    def run(output, engine, **config):
        stage = GenerateConfig(
            name="own", table="in", problems_per_step=1,
            sampling=SamplingConfig(samples_per_prompt=2), **config,
        )  # fmt: skip
        opened = context(output, inputs, model_folder=smollm2, open_engine=lambda _: engine)
        result = Generate(stage).run(opened)
        return result, read_table(output, Kind.SAMPLES)

    whole = ScriptedEngine(template, ["a", "b"])
    result, expected = run(tmp_path / "whole", whole)
    assert result.counts["problems"] == len(whole.prompts) == 6

    dying, again = (kind(template, ["a", "b"]) for kind in (DyingEngine, ScriptedEngine))
    with pytest.raises(GenerationError):
        run(tmp_path / "died", dying)
    result, resumed = run(tmp_path / "died", again)
    assert dying.prompts + again.prompts == whole.prompts
    assert len(dying.prompts) == 2
    assert resumed.equals(expected)
    assert result.counts["problems"] == 6

    parts = [
        run(tmp_path / f"shard{i}", ScriptedEngine(template, ["a", "b"]), shard=f"{i}/3")[1]
        for i in range(3)
    ]
    assert pl.concat(parts).equals(expected)


def test_another_model_is_asked_in_its_own_template_and_keeps_the_thought_it_began(
    tmp_path, smollm2
):
    own = TemplateConfig(name="qwen_think", suffix=" Box it.")
    texts = ["It is 2.</think> 2", " ", "So it may be \\boxed{5}, wait"]
    _, samples, engine, template = generate(tmp_path, smollm2, [sample(0)], texts, template=own)
    asked = template.tokenizer.decode(engine.prompts[0])
    assert asked.endswith("Problem 0? Box it.<|im_end|>\n<|im_start|>assistant\n<think>\n")
    told = [f"<think>\n{texts[0]}", " ", f"<think>\n{texts[2]}"]
    assert samples["response"].to_list() == told
    assert stated.conclusion(told[2]) == "", "a cut thought states nothing"


def test_a_prompt_that_leaves_no_room_is_set_aside_and_the_others_are_answered(tmp_path, smollm2):
    rows = [sample(0), sample(1, problem="long " * 100), sample(2)]
    result, samples, engine, _ = generate(tmp_path, smollm2, rows, ["It is 2."])
    assert [len(prompt) < 100 for prompt in engine.prompts] == [True, True]
    assert (result.num_rows, result.counts["prompt fills the context"]) == (2, 1)
    with pytest.raises(DataError, match="1 prompts fill the context"):
        generate(tmp_path / "x", smollm2, rows[1:2], ["It is 2."])
    (aside,) = pl.read_parquet(tmp_path / "out" / "quarantine.parquet").to_dicts()
    assert "engine.max_model_len is 100" in aside["detail"]
    assert aside["place"].removeprefix("problem ") not in set(samples["problem_id"])
