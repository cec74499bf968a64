"""Selection from a table: eligibility, each rule, shortages, and what is written for the report."""

import json
import math

import polars as pl
import pytest
from pydantic import ValidationError

from megatron_reason.curation.select import Select, SelectConfig
from megatron_reason.errors import DataError, SchemaError
from megatron_reason.schema.records import Status
from megatron_reason.schema.tables import Kind, read_table
from tests.curation.stages import context, sample, write_samples


def select(tmp_path, rows, **config):
    config = {"where": "any", "role": "demo", "name": "picked", "table": "in"} | config
    table = write_samples(tmp_path / "in", rows)
    result = Select(SelectConfig(**config)).run(context(tmp_path / "out", {"in": table}, seed=1))
    return result, read_table(tmp_path / "out", Kind.SAMPLES, filled=("role",))


def scored(number, ppl, *, problem=None, status=Status.OK, num_tokens=10):
    return sample(
        number, problem=problem, response=f"response {number}", ppl=ppl, status=status,
        num_tokens=num_tokens,
    )  # fmt: skip


def picked(rows):
    return [text.removeprefix("response ") for text in rows["response"]]


def test_lowest_takes_one_per_problem_above_the_floor_first_come_first(tmp_path):
    rows = [
        scored(0, 1.1, problem=0),
        scored(1, 1.2, problem=0),
        scored(2, 1.3, problem=0),
        scored(3, 2.0, problem=1),
        scored(4, 2.0, problem=2),
        scored(5, 1.5, problem=3),
        scored(6, 1.4, problem=3, status=Status.WRONG),
    ]
    rule = {"name": "lowest", "floor": 1.2}
    result, taken = select(tmp_path, rows, rule=rule, count=3, where="correct", role="negative")
    assert picked(taken) == ["1", "5", "3"]
    assert set(taken["role"]) == {"negative"}
    assert result.counts["not_correct"] == 1
    assert result.counts["shortage"] == 0


def test_wrong_means_known_to_be_wrong(tmp_path):
    rows = [scored(i, 2.0 + i, status=status) for i, status in enumerate(Status)]
    _, taken = select(tmp_path, rows, rule={"name": "lowest"}, count=2, where="wrong")
    assert taken["status"].to_list() == ["wrong", "no_answer"]


def test_non_finite_perplexities_are_set_aside(tmp_path):
    rows = [scored(0, math.nan), scored(1, math.inf), scored(2, 3.0)]
    result, taken = select(tmp_path, rows, rule={"name": "lowest"}, count=1)
    assert picked(taken) == ["2"]
    assert result.counts["perplexity is not finite"] == 2
    assert pl.read_parquet(tmp_path / "out" / "quarantine.parquet")["detail"].to_list() == [
        "nan", "inf",
    ]  # fmt: skip


def test_overlong_responses_are_counted(tmp_path):
    rows = [scored(0, 3.0, num_tokens=99), scored(1, 3.0, num_tokens=50)]
    result, taken = select(tmp_path, rows, rule={"name": "random"}, count=1, max_tokens=50)
    assert picked(taken) == ["1"]
    assert result.counts["longer_than_max_tokens"] == 1


def test_responses_below_min_tokens_are_counted(tmp_path):
    rows = [scored(0, 1.1, num_tokens=9), scored(1, 3.0, num_tokens=10)]
    for rule in ({"name": "lowest"}, {"name": "random"}):
        result, taken = select(tmp_path, rows, rule=rule, count=1, min_tokens=10)
        assert picked(taken) == ["1"]
        assert result.counts["shorter_than_min_tokens"] == 1
    with pytest.raises(SchemaError, match="score"):
        select(tmp_path, [sample(0)], rule={"name": "random"}, count=1, min_tokens=10)
    with pytest.raises(ValidationError, match="more than 'max_tokens'"):
        select(tmp_path, rows, rule={"name": "random"}, count=1, min_tokens=10, max_tokens=9)


def test_a_prefix_is_put_where_it_is_not(tmp_path):
    texts = ["a</think> 3", "<think>b</think> 3", " "]
    rows = [
        sample(n, response=text, ppl=2.0 + n, num_tokens=5, status=Status.WRONG)
        for n, text in enumerate(texts)
    ]
    rule = {"name": "lowest", "floor": 1.2}
    _, taken = select(tmp_path, rows, rule=rule, count=3, where="wrong", prefix="<think>")
    assert taken["response"].to_list() == ["<think>a</think> 3", "<think>b</think> 3", " "]
    assert taken["ppl"].to_list() == [2.0, 3.0, 4.0]
    assert taken["sample_id"].to_list() == [row.sample_id for row in rows]
    _, taken = select(tmp_path, rows, rule=rule, count=3, where="wrong")
    assert taken["response"].to_list() == texts


def test_gaussian_writes_its_bins_for_the_report(tmp_path):
    rows = [scored(i, 1.0 + i / 50, num_tokens=i) for i in range(200)]
    rule = {"name": "gaussian", "mean": 3.0, "std": 0.5, "bin_width": 0.5}
    result, taken = select(tmp_path, rows, rule=rule, count=20)
    written = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert written["target"] == written["taken"]
    assert sum(written["taken"]) == len(taken) == result.num_rows == 20
    assert len(written["edges"]) == len(written["target"]) + 1
    assert abs(float(taken["ppl"].mean()) - 3.0) < 0.3


def test_a_shortage_is_an_error_that_says_where_and_what_to_do(tmp_path):
    rows = [scored(i, 2.0) for i in range(5)]
    rule = {"name": "gaussian", "mean": 2.2, "bin_width": 1.0}
    with pytest.raises(DataError) as caught:
        select(tmp_path, rows, rule=rule, count=10)
    assert "found 5 of 10 responses (5 short) among 5 eligible" in caught.value.what
    assert "2.00-3.00: 5 of 10" in caught.value.what
    assert "median 2.00" in caught.value.what
    assert "allow_shortage" in caught.value.way_out
    result, taken = select(tmp_path, rows, rule=rule, count=10, allow_shortage=True)
    assert len(taken) == result.counts["shortage"] == 5


def test_the_papers_floored_targets_are_no_shortage(tmp_path):
    rows = [scored(i, 1.0 + i / 50, num_tokens=i) for i in range(200)]
    rule = {"name": "gaussian", "mean": 3.0, "std": 0.5, "bin_width": 0.5, "exact": "paper"}
    result, taken = select(tmp_path, rows, rule=rule, count=10)
    assert len(taken) == 8
    assert result.counts["shortage"] == 0
    with pytest.raises(DataError, match=r"found 7 of 8 responses \(1 short\)"):
        select(tmp_path, [row for row in rows if not 2.0 <= row.ppl < 2.5], rule=rule, count=10)
    with pytest.raises(DataError, match="found 0 of 0"):
        select(tmp_path, rows, rule=rule, count=1, allow_shortage=True)


def test_nothing_at_all_is_an_error_even_if_a_shortage_is_allowed(tmp_path):
    with pytest.raises(DataError, match="0 of 1"):
        select(
            tmp_path, [scored(0, 2.0)], rule={"name": "interval", "low": 3, "high": 4}, count=1,
            allow_shortage=True,
        )  # fmt: skip


def test_interval_and_random_draw_by_seed(tmp_path):
    rows = [scored(i, 1 + i / 10, problem=i // 2) for i in range(60)]
    for rule in ({"name": "interval", "low": 2.0, "high": 5.0}, {"name": "random"}):
        draws = [
            picked(select(tmp_path, rows, rule=rule, count=10, seed=seed)[1]) for seed in (1, 1, 2)
        ]
        assert draws[0] == draws[1] != draws[2]
        assert len({int(number) // 2 for number in draws[0]}) == 10
        if rule["name"] == "interval":
            assert all(10 <= int(number) <= 40 for number in draws[0])


def test_columns_of_earlier_stages_must_be_there(tmp_path):
    with pytest.raises(SchemaError, match="score"):
        select(tmp_path, [sample(0)], rule={"name": "lowest"}, count=1)
    with pytest.raises(SchemaError, match="grade"):
        select(tmp_path, [sample(0)], rule={"name": "random"}, count=1, where="correct")


def test_official_duplicates_are_counted(tmp_path):
    rows = [scored(0, 3.1, problem=0), scored(1, 3.1, problem=0)]
    rule = {"name": "gaussian", "mean": 3.0, "bin_width": 4.0}
    result, taken = select(tmp_path, rows, rule=rule, count=2, per_problem=2)
    assert result.counts["repeated"] == 1
    assert len(taken) == 2


@pytest.mark.parametrize(
    "rule",
    [
        {"name": "gaussain", "mean": 3.0},
        {"name": "gaussian"},
        {"name": "gaussian", "mean": 3.0, "low": 5.0, "high": 1.0},
        {"name": "lowest", "ceiling": 3.0},
    ],
)
def test_rules_are_strict(rule):
    with pytest.raises(ValidationError):
        SelectConfig(
            name="x", table="y", role="demo", count=1, where="any", rule=rule
        )  # fmt: skip
