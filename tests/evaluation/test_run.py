import itertools
import multiprocessing
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import megatron_reason
from megatron_reason.config.evaluate import EvalConfig
from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.errors import DataError, GenerationError
from megatron_reason.evaluation import run
from megatron_reason.evaluation.card import comparable, read_card
from megatron_reason.evaluation.run import evaluate
from megatron_reason.evaluation.summary import fill_entropy, read_summary
from megatron_reason.generation.hf_engine import HFEngine
from megatron_reason.generation.templates import Template, load_template
from megatron_reason.generation.vllm_engine import VllmEngine
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.records import Finish, Message, Problem, Status, Verdict
from megatron_reason.schema.tables import Kind, read_table

NUM_SAMPLES = 3


def make_config(**changes: object) -> EvalConfig:
    sampling = SamplingConfig(samples_per_prompt=NUM_SAMPLES, max_tokens=4, seed=1)
    return EvalConfig(table="problems", sampling=sampling).model_copy(update=changes)


@pytest.fixture
def problems() -> pl.DataFrame:
    rows = [
        Problem((Message("user", f"What is {i} + {i}?"),), str(2 * i), "sums", family=f"f{i % 2}")
        for i in range(1, 6)
    ]
    return pl.DataFrame(
        [
            {
                "problem_id": row.problem_id,
                "messages": [{"role": "user", "content": row.messages[0].content}],
                "answer": row.answer,
                "source": row.source,
                "family": row.family,
                "split": row.split,
            }
            for row in rows
        ]
    )


@pytest.fixture(scope="module")
def tiny(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of one thin layer, with SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def template(tiny: Path) -> Template:
    return load_template(TemplateConfig(name="qwen_no_system"), tiny)


class CountingEngine(HFEngine):
    """Counts the prompts it was given, and dies once it was given more than `dies_after`."""

    num_prompts = 0
    dies_after = 10**6

    def generate(self, prompts, sampling, **rest):  # type: ignore[no-untyped-def]
        if self.num_prompts + len(prompts) > self.dies_after:
            raise GenerationError("engine", "died.", "Try again.")
        self.num_prompts += len(prompts)
        return super().generate(prompts, sampling, **rest)


@pytest.fixture
def engine(tiny: Path) -> CountingEngine:
    config = EngineConfig(name="transformers", max_model_len=128, max_num_seqs=8)
    return CountingEngine(tiny, config, dtype="float32")


def grade(pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    """Right for even lengths of the response, no answer for lengths that 3 divides."""
    verdicts = {0: Verdict(1.0, Status.OK, "a"), 1: Verdict(0.0, Status.WRONG, "b")}
    nothing = Verdict(0.0, Status.NO_ANSWER)
    return [nothing if len(r) % 3 == 0 else verdicts[len(r) % 2] for _, r in pairs]


def test_tables_and_summary(
    engine: CountingEngine, template: Template, problems: pl.DataFrame, tmp_path: Path
):
    summary = evaluate(
        problems, engine, template=template, config=make_config(), output=tmp_path, grade=grade
    )
    rows = read_table(tmp_path, Kind.GENERATIONS, filled=("status", "score", "response"))
    assert rows.height == 15
    assert rows.unique(["problem_id", "sample_index"]).height == 15
    assert (
        rows["problem_id"].unique(maintain_order=True).to_list() == problems["problem_id"].to_list()
    )
    assert rows["mean_entropy"].null_count() == 15
    assert rows["problem"][0] == "What is 1 + 1?"
    by_hand = [verdict.status for verdict in grade([("", r) for r in rows["response"]])]
    assert rows["status"].to_list() == by_hand
    right = by_hand.count(Status.OK)
    assert 0 < right < 15
    metrics = summary.metrics
    assert metrics["pass@1"].value == pytest.approx(right / 15)
    solved = rows.filter(pl.col("status") == Status.OK)["problem_id"].n_unique()
    assert metrics["pass@3"].value == pytest.approx(solved / 5)
    assert metrics["mean_length"].value == pytest.approx(rows["num_tokens"].mean())
    truncated = (rows["finish"] == Finish.LENGTH).mean()
    assert metrics["truncated_fraction"].value == pytest.approx(truncated)
    no_answer = by_hand.count(Status.NO_ANSWER) / 15
    assert metrics["no_answer_fraction"].value == pytest.approx(no_answer)
    assert set(metrics) == {
        "pass@1", "pass@2", "pass@3", "maj@3", "mean_length", "length_correct", "length_wrong",
        "truncated_fraction", "no_answer_fraction",
    }  # fmt: skip
    by_verdict = {"length_correct": right, "length_wrong": 15 - right}
    for name, metric in metrics.items():
        assert metric.low <= metric.value <= metric.high
        assert metric.n == by_verdict.get(name, 15)
    means = {flag: rows.filter((pl.col("status") == Status.OK) == flag)["num_tokens"].mean()
             for flag in (True, False)}  # fmt: skip
    assert metrics["length_correct"].value == pytest.approx(means[True])
    assert metrics["length_wrong"].value == pytest.approx(means[False])
    assert (summary.num_problems, summary.num_samples) == (5, 15)
    assert sum(summary.statuses.values()) == 15
    assert read_summary(tmp_path) == summary


def test_interrupted_evaluation_goes_on_and_equals_an_uninterrupted_one(
    engine: CountingEngine, template: Template, problems: pl.DataFrame, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(run, "_SAMPLES_PER_CHUNK", 2 * NUM_SAMPLES)
    engine.dies_after = 4
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    arguments = {"template": template, "config": make_config(), "grade": grade}
    with pytest.raises(GenerationError, match="died"):
        evaluate(problems, engine, output=parts, **arguments)
    assert read_table(parts, Kind.GENERATIONS).height == 4 * NUM_SAMPLES
    engine.dies_after, engine.num_prompts = 10**6, 0
    summary = evaluate(problems, engine, output=parts, **arguments)
    assert engine.num_prompts == 1
    assert summary == evaluate(problems, engine, output=whole, **arguments)
    assert read_table(parts, Kind.GENERATIONS).equals(read_table(whole, Kind.GENERATIONS))
    engine.num_prompts = 0
    evaluate(problems, engine, output=whole, **arguments)
    assert engine.num_prompts == 0


@pytest.mark.parametrize("deadly", range(1, 6))
def test_interrupted_at_any_grading_the_same_command_gives_the_same_table(
    engine: CountingEngine, template: Template, problems: pl.DataFrame, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, deadly: int,
):  # fmt: skip
    """What is on disk then is all that a killed process leaves: tables appear in one rename."""
    monkeypatch.setattr(run, "_SAMPLES_PER_CHUNK", NUM_SAMPLES)
    arguments = {"template": template, "config": make_config(), "output": tmp_path / "parts"}
    calls = itertools.count(1)

    def dies(pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        if next(calls) == deadly:
            raise KeyboardInterrupt
        return grade(pairs)

    with pytest.raises(KeyboardInterrupt):
        evaluate(problems, engine, grade=dies, **arguments)
    table = tmp_path / "parts" / "generations.parquet"
    assert table.exists() == (deadly > 1)
    summary = evaluate(problems, engine, grade=grade, **arguments)
    whole = {**arguments, "output": tmp_path / "whole"}
    assert summary == evaluate(problems, engine, grade=grade, **whole)
    stored = read_table(tmp_path / "parts", Kind.GENERATIONS)
    assert stored.equals(read_table(tmp_path / "whole", Kind.GENERATIONS))


def answer_all(tiny: Path, problems: pl.DataFrame, output: Path) -> None:
    """A whole evaluation, in a process that may be killed at any moment."""
    torch.set_num_threads(1)
    run._SAMPLES_PER_CHUNK = NUM_SAMPLES
    config = EngineConfig(name="transformers", max_model_len=128, max_num_seqs=8)
    template = load_template(TemplateConfig(name="qwen_no_system"), tiny)
    with HFEngine(tiny, config, dtype="float32") as engine:
        evaluate(
            problems, engine, template=template, config=make_config(), output=output, grade=grade
        )


def test_killed_while_it_samples_again_and_again_the_table_is_the_same_in_the_end(
    tiny: Path, problems: pl.DataFrame, tmp_path: Path
):
    many = pl.concat(
        [problems.with_columns(pl.col("problem_id") + f"-{again}") for again in range(12)]
    )
    multiprocessing.set_forkserver_preload(["tests.preload"])
    context = multiprocessing.get_context("forkserver")
    output, table = tmp_path / "killed", tmp_path / "killed" / "generations.parquet"
    answered = 0
    for _ in range(3):
        process = context.Process(target=answer_all, args=(tiny, many, output))
        process.start()
        before = answered
        while answered <= before:
            assert process.is_alive()
            time.sleep(0.002)
            answered = read_table(output, Kind.GENERATIONS).height if table.is_file() else 0
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        answered = read_table(output, Kind.GENERATIONS).height
        assert before < answered < many.height * NUM_SAMPLES
    for folder in (output, tmp_path / "whole"):
        process = context.Process(target=answer_all, args=(tiny, many, folder))
        process.start()
        process.join()
        assert process.exitcode == 0
    whole = read_table(tmp_path / "whole", Kind.GENERATIONS)
    assert read_table(output, Kind.GENERATIONS).equals(whole)
    assert read_summary(output) == read_summary(tmp_path / "whole")


def test_another_grader_judges_the_stored_answers_again(
    engine: CountingEngine, template: Template, problems: pl.DataFrame, tmp_path: Path
):
    arguments = {"template": template, "output": tmp_path}
    evaluate(problems, engine, config=make_config(), grade=grade, **arguments)
    answers = read_table(tmp_path, Kind.GENERATIONS, columns=["response"])
    engine.num_prompts = 0
    found = evaluate(
        problems, engine, config=make_config(reward="numeric"), **arguments,
        grade=lambda pairs: [Verdict(1.0, Status.OK, "x") for _ in pairs],
    )  # fmt: skip
    assert engine.num_prompts == 0
    assert found.metrics["pass@1"].value == 1
    assert read_card(tmp_path).reward == "numeric"
    assert read_table(tmp_path, Kind.GENERATIONS, columns=["response"]).equals(answers)


def test_another_version_of_the_package_grades_again_and_draws_nothing(
    engine: CountingEngine, template: Template, problems: pl.DataFrame, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    arguments = {"template": template, "config": make_config(), "output": tmp_path}
    evaluate(problems, engine, grade=grade, **arguments)
    monkeypatch.setattr(megatron_reason, "__version__", "99")
    engine.num_prompts = 0
    for _ in range(2):
        found = evaluate(
            problems,
            engine,
            **arguments,
            grade=lambda pairs: [Verdict(1.0, Status.OK) for _ in pairs],
        )
        assert found.metrics["pass@1"].value == 1
    assert engine.num_prompts == 0
    assert read_card(tmp_path).versions["megatron-reason"] == "99"


@pytest.mark.parametrize("dies_after", [10**6, 2])
def test_more_samples_are_added_to_those_that_are_there(
    engine: CountingEngine, template: Template, problems: pl.DataFrame, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, dies_after: int,
):  # fmt: skip
    monkeypatch.setattr(run, "_SAMPLES_PER_CHUNK", 4)
    arguments = {"template": template, "grade": grade}
    more = make_config().sampling.model_copy(update={"samples_per_prompt": 5})
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    evaluate(problems, engine, config=make_config(), output=grown, **arguments)
    before = read_table(grown, Kind.GENERATIONS)
    engine.num_prompts, engine.dies_after = 0, dies_after
    config = make_config(sampling=more)
    if dies_after == 2:
        with pytest.raises(GenerationError, match="died"):
            evaluate(problems, engine, config=config, output=grown, **arguments)
        assert read_table(grown, Kind.GENERATIONS).height == 5 * NUM_SAMPLES + 2 * 2
        assert not (grown / "summary.json").exists()
        engine.dies_after = 10**6
    summary = evaluate(problems, engine, config=config, output=grown, **arguments)
    assert engine.num_prompts == 5
    assert summary == evaluate(problems, engine, config=config, output=whole, **arguments)
    after = read_table(grown, Kind.GENERATIONS)
    assert after.equals(read_table(whole, Kind.GENERATIONS))
    assert after.filter(pl.col("sample_index") < NUM_SAMPLES).equals(before)
    assert read_card(grown) == read_card(whole)


def test_answers_to_other_problems_beside_an_unfinished_card_are_refused(
    engine: CountingEngine, template: Template, problems: pl.DataFrame, tmp_path: Path
):
    arguments = {"template": template, "config": make_config(), "grade": grade}
    evaluate(problems, engine, output=tmp_path / "a", **arguments)
    renamed = problems.head(2).with_columns(pl.col("problem_id") + "x")
    evaluate(renamed, engine, output=tmp_path / "b", **arguments)
    (tmp_path / "b" / "generations.parquet").replace(tmp_path / "a" / "generations.parquet")
    with pytest.raises(DataError, match="6 answers are to other problems than the card's"):
        evaluate(problems, engine, output=tmp_path / "a", **arguments)
    (tmp_path / "a" / "eval_card.json").unlink()
    with pytest.raises(DataError, match=r"answers lie here without the eval_card\.json"):
        evaluate(problems, engine, output=tmp_path / "a", **arguments)


def test_another_card_starts_afresh_and_the_answers_are_moved_aside(
    engine: CountingEngine, template: Template, problems: pl.DataFrame, tmp_path: Path
):
    arguments = {"template": template, "output": tmp_path, "grade": grade}
    evaluate(problems, engine, config=make_config(), **arguments)
    first, answers = read_card(tmp_path), read_table(tmp_path, Kind.GENERATIONS)
    warmer = make_config().sampling.model_copy(update={"temperature": 0.5, "seed": 2})
    evaluate(problems, engine, config=make_config(sampling=warmer), **arguments)
    assert engine.num_prompts == 10
    assert read_card(tmp_path / "before-1") == first
    assert read_table(tmp_path / "before-1", Kind.GENERATIONS).equals(answers)
    assert comparable(first, read_card(tmp_path)) == ["sampling.temperature 1.0 -> 0.5"]
    evaluate(problems, engine, config=make_config(sampling=warmer, max_problems=2), **arguments)
    assert read_table(tmp_path, Kind.GENERATIONS).height == 2 * NUM_SAMPLES
    assert [line.split()[0] for line in comparable(first, read_card(tmp_path))] == [
        "num_problems", "problems_hash", "sampling.temperature"
    ]  # fmt: skip
    assert read_table(tmp_path / "before-2", Kind.GENERATIONS).height == 5 * NUM_SAMPLES


def test_other_weights_are_answered_anew_but_may_be_compared(
    engine: CountingEngine, template: Template, problems: pl.DataFrame, tiny: Path, tmp_path: Path
):
    arguments = {"template": template, "config": make_config(), "grade": grade}
    evaluate(problems, engine, output=tmp_path / "out", **arguments)
    first = read_card(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    model.save_pretrained(tmp_path / "trained")
    engine.load_weights(tmp_path / "trained")
    evaluate(problems, engine, output=tmp_path / "out", **arguments)
    assert engine.num_prompts == 10
    second = read_card(tmp_path / "out")
    assert first.weights != second.weights
    assert comparable(first, second) == []


def test_flags_of_the_engine_are_noted_and_change_nothing(
    engine: CountingEngine, template: Template, problems: pl.DataFrame, tiny: Path, tmp_path: Path
):
    arguments = {"template": template, "config": make_config(), "grade": grade}
    evaluate(problems, engine, output=tmp_path, **arguments)
    first, answers = read_card(tmp_path), read_table(tmp_path, Kind.GENERATIONS)
    assert first.engine_flags == {"max_num_seqs": 8}
    wider = CountingEngine(
        tiny,
        EngineConfig(name="transformers", max_model_len=128, max_num_seqs=16),
        dtype="float32",
    )
    evaluate(problems, wider, output=tmp_path, **arguments)
    assert wider.num_prompts == 0
    assert read_table(tmp_path, Kind.GENERATIONS).equals(answers)
    assert comparable(first, first.model_copy(update={"engine_flags": {}})) == []


def test_entropy_is_filled_in_afterwards(
    engine: CountingEngine, template: Template, problems: pl.DataFrame, tmp_path: Path
):
    arguments = {"template": template, "config": make_config(), "grade": grade}
    before = evaluate(problems, engine, output=tmp_path, **arguments)
    first, second = problems["problem_id"][0], problems["problem_id"][1]
    summary = fill_entropy(tmp_path, {(first, 0): 1.0, (first, 2): 2.0, (second, 1): 6.0})
    assert summary.metrics["mean_entropy"].value == pytest.approx(3.0)
    assert summary.metrics["mean_entropy"].n == 3
    assert summary.metrics["mean_entropy"].low >= 1.5 - 1e-9
    assert {**summary.metrics, "mean_entropy": None} == {**before.metrics, "mean_entropy": None}
    assert read_summary(tmp_path) == summary
    rows = read_table(tmp_path, Kind.GENERATIONS)
    assert rows["mean_entropy"].drop_nulls().to_list() == [1.0, 2.0, 6.0]
    again = evaluate(problems, engine, output=tmp_path, **arguments)
    assert again == summary
    with pytest.raises(DataError, match="1 entropies belong to no answer"):
        fill_entropy(tmp_path, {(first, 3): 1.0})


def test_bad_problems_are_refused(
    engine: CountingEngine, template: Template, problems: pl.DataFrame, tmp_path: Path
):
    arguments = {"template": template, "config": make_config(), "grade": grade}
    with pytest.raises(DataError, match="no problems"):
        evaluate(problems.head(0), engine, output=tmp_path, **arguments)
    with pytest.raises(DataError, match="1 problem ids occur more than once"):
        evaluate(pl.concat([problems, problems[:1]]), engine, output=tmp_path, **arguments)


def test_real_model_engine_and_grader(
    vllm_engine: VllmEngine, smollm2: Path, problems: pl.DataFrame, tmp_path: Path
):
    sampling = SamplingConfig(samples_per_prompt=4, temperature=0.3, max_tokens=64)
    with AnswerPool(workers=1) as pool:
        summary = evaluate(
            problems,
            vllm_engine,
            template=load_template(TemplateConfig(), smollm2),
            config=make_config(sampling=sampling),
            output=tmp_path,
            grade=pool.grade_many,
        )
    rows = read_table(tmp_path, Kind.GENERATIONS)
    assert summary.metrics["pass@4"].value > 0, rows["response"].to_list()
    assert summary.metrics["pass@1"].value <= summary.metrics["pass@4"].value
    assert not rows["response"].str.contains("<|im_end|>", literal=True).any()
    card = read_card(tmp_path)
    assert card.engine == {"name": "vllm", "dtype": "bfloat16", "max_model_len": 512}
    assert {"transformers", "math-verify", "megatron-reason"} <= card.versions.keys()
