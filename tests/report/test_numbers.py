import polars as pl
import pytest

from megatron_reason.report.numbers import (
    bin_edges,
    length_numbers,
    metric_numbers,
    selection_numbers,
    training_numbers,
)
from megatron_reason.report.run_data import read_run


@pytest.fixture(scope="module")
def data(finished_run):
    return read_run(finished_run)


def test_bins_hold_every_response_and_the_last_one_all_beyond(data):
    truths = [s for s in data.selections if s.role == "demo"]
    numbers = selection_numbers(truths, "ppl")
    assert numbers["candidates"].sum() == 180
    for selection in truths:
        assert numbers[selection.name].sum() == len(selection.rows)
    pool = truths[0].candidates["ppl"]
    last = numbers.tail(1)
    assert last["candidates"][0] == (pool >= last["low"][0]).sum()
    assert numbers["high"][-1] < pool.max()
    assert list(bin_edges(truths, "ppl")) == [*numbers["low"], numbers["high"][-1]]
    assert selection_numbers([], "ppl").is_empty()


def test_training_numbers_are_those_logged(data):
    numbers = training_numbers(data.training, "train/ul")
    assert numbers["model"].unique().to_list() == ["oxa_full"]
    logged = data.training["oxa_full"]
    assert numbers["value"].to_list() == logged["train/ul"].to_list()
    assert numbers["step"].to_list() == logged["step"].to_list()
    assert training_numbers(data.training, "train/absent").is_empty()


def test_metrics_come_with_interval_and_count(data):
    summaries = {m.model: m.summary for m in data.measurements}
    numbers = metric_numbers(summaries, "pass@1", "mean_entropy")
    assert set(numbers["metric"]) == {"pass@1", "mean_entropy"}
    passes = {"pass@1", "pass@2", "pass@3", "pass@4"}
    assert set(metric_numbers(summaries, "pass@*")["metric"]) == passes
    row = numbers.row(by_predicate=(pl.col("model") == "sft") & (pl.col("metric") == "pass@1"))
    e = summaries["sft"].metrics["pass@1"]
    assert row == ("sft", "pass@1", e.value, e.low, e.high, e.n)


def test_lengths_by_verdict():
    answers = pl.DataFrame(
        {"status": ["ok", "wrong", "no_answer", "timeout"], "num_tokens": [7, 10, 20, 60]},
        schema_overrides={"num_tokens": pl.Int32},
    )
    numbers = length_numbers({"base": answers})
    assert numbers.columns == ["model", "is_right", "n", "p5", "p25", "p50", "p75", "p95"]
    assert numbers.row(0)[:3] == ("base", True, 1)
    assert numbers.row(1) == ("base", False, 3, 11.0, 15.0, 20.0, 40.0, 56.0)
