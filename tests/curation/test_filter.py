"""Filtering: each objection, in the order they are made, with nothing lost."""

import json
from collections import Counter

import polars as pl
import pytest
from pydantic import ValidationError

from megatron_reason.curation.filter import Filter, FilterConfig, OverlapIndex
from megatron_reason.errors import DataError
from megatron_reason.schema.tables import Kind, read_table
from tests.curation.stages import context, sample, write_samples


def run(tmp_path, rows, **config):
    inputs = {"in": write_samples(tmp_path / "in", rows)}
    result = Filter(FilterConfig(name="clean", table="in", **config)).run(
        context(tmp_path / "out", inputs)
    )
    return result, read_table(tmp_path / "out", Kind.SAMPLES)


def test_each_objection_is_counted(tmp_path):
    rows = [
        sample(0, response="right length"),
        sample(1, problem=0, response="right length"),
        sample(2, response="short"),
        sample(3, response="far too long a response"),
    ]
    result, kept = run(tmp_path, rows, min_characters=6, max_characters=15)
    assert kept["sample_id"].to_list() == [rows[0].sample_id]
    aside = pl.read_parquet(tmp_path / "out" / "quarantine.parquet")["reason"]
    assert result.counts == dict(Counter(aside)) == {
        "duplicate response": 1,
        "shorter than min_characters": 1,
        "longer than max_characters": 1,
    }  # fmt: skip


def test_problems_of_a_benchmark_are_set_aside(tmp_path):
    problem = "A train leaves at noon and travels 60 miles an hour; how far is it at two?"
    near = problem.replace("noon", "dawn")
    rows = [sample(0, problem=problem), sample(1, problem=near), sample(2, problem="How many")]
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text(json.dumps({"problem": f"Problem {problem}?", "answer": "120"}))
    config = {"benchmarks": (str(benchmark),)}
    result, kept = run(tmp_path, rows, **config, max_overlap=0.5)
    assert kept["sample_id"].to_list() == [rows[2].sample_id]
    assert result.counts == {"benchmark problem": 2}
    _, kept = run(tmp_path, rows, **config, max_overlap=0.9)
    assert kept["sample_id"].to_list() == [rows[1].sample_id, rows[2].sample_id]


def test_overlap_is_the_jaccard_similarity_of_5_grams():
    index = OverlapIndex(["a b c d e f", "a b c d e"])
    assert index.overlap("a b c d e f") == 1.0
    assert index.overlap("A B C D E g") == pytest.approx(1 / 2)
    assert index.overlap("b c d e f g") == pytest.approx(1 / 3)
    assert index.overlap("x y") == index.overlap("") == 0.0


def test_pass_rate_band(tmp_path):
    rows = [
        sample(i, problem=i // 4, response=f"r{i}", score=float(i % 4 < right))
        for i, right in enumerate([r for r in (0, 1, 3, 4) for _ in range(4)])
    ]
    _, kept = run(tmp_path, rows, pass_rate=(0.2, 0.8))
    assert kept["sample_id"].to_list() == [row.sample_id for row in rows[4:12]]
    with pytest.raises(DataError, match="nothing is left"):
        run(tmp_path, rows, pass_rate=(0.3, 0.4))
    with pytest.raises(ValidationError):
        run(tmp_path, rows, pass_rate=(0.8, 0.2))


def test_flaws_and_tokens(tmp_path, smollm2):
    rows = [
        sample(0, response="fine"),
        sample(1, response="see https://a.b"),
        sample(2, response="many words are in this one"),
    ]
    inputs = {"in": write_samples(tmp_path / "in", rows)}
    config = FilterConfig(name="clean", table="in", refuse=("hyperlink",), max_tokens=4)
    result = Filter(config).run(context(tmp_path / "out", inputs, model_folder=smollm2))
    assert result.counts == {"hyperlink": 1, "longer than max_tokens": 1}
    aside = pl.read_parquet(tmp_path / "out" / "quarantine.parquet")
    assert aside["place"].to_list() == [f"sample {row.sample_id}" for row in rows[1:]]


def test_flaws_of_the_problem_count_too(tmp_path):
    rows = [
        sample(0, response="fine"),
        sample(1, problem="with a figure at www.example.org", response="fine"),
        sample(2, response="<think>因此</think>"),
    ]
    result, kept = run(tmp_path, rows, refuse=("hyperlink", "mixed_languages"))
    assert kept["sample_id"].to_list() == [rows[0].sample_id]
    assert result.counts == {"hyperlink": 1, "mixed languages": 1}


@pytest.mark.parametrize(("num_correct", "is_kept"), [(1, False), (2, True), (6, True), (7, False)])
def test_of_eight_samples_two_to_six_must_be_right(tmp_path, num_correct, is_kept):
    def answers(problem, count, correct):
        return [
            sample(100 * problem + n, problem=problem, response=f"{n}", score=float(n < correct))
            for n in range(count)
        ]

    # Of the second problem there are too few samples for a rate; the third keeps the table filled.
    rows = [*answers(0, 8, num_correct), *answers(1, 7, 3), *answers(2, 8, 4)]
    result, kept = run(tmp_path, rows, pass_rate=(0.2, 0.8), min_responses=8)
    assert kept["problem_id"].n_unique() == 1 + is_kept
    assert result.num_rows == 8 * (1 + is_kept)
