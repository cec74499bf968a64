import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest

from megatron_reason.evaluation.estimators import over_trainings
from megatron_reason.evaluation.summary import read_summary
from megatron_reason.report.table import Headline, HeadlineRow, headline_table
from tests.report.runs import VARIANTS, folder_of, write_eval


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def test_numbers_are_those_of_the_summaries(run):
    table = headline_table(run)
    assert table.header == ["model", "pass@1 (%)", "pass@4 (%)", "entropy (nats)",
                            "length (tokens)", "truncated (%)", "problems x samples"]  # fmt: skip
    assert [row[0] for row in table.rows] == ["base", *VARIANTS]
    for model, row in zip(["base", *VARIANTS], table.rows, strict=True):
        metrics = read_summary(folder_of(run, f"eval-{model}")).metrics
        shown = [("pass@1", 100, 1), ("pass@4", 100, 1), ("mean_entropy", 1, 3),
                 ("mean_length", 1, 1), ("truncated_fraction", 100, 1)]  # fmt: skip
        for cell, (name, scale, digits) in zip(row[1:-1], shown, strict=True):
            e = metrics[name]
            numbers = [f"{scale * x:.{digits}f}" for x in (e.value, e.low, e.high)]
            assert cell == "{} [{}, {}]".format(*numbers)
        assert row[-1] == "12 x 4"
    assert table.entropy_counts == [12]


def test_numbers_survive_as_json(run):
    stored = json.loads(json.dumps(asdict(headline_table(run))))
    row = stored["measured"][1]
    assert (row["model"], row["num_problems"], row["num_samples"]) == ("sft", 12, 48)
    assert row["metrics"]["pass@1"].keys() == {"value", "low", "high", "n"}


def test_models_without_an_evaluation_have_dashes(run):
    (folder_of(run, "eval-sft") / "summary.json").unlink()
    rows = {row[0]: row[1:] for row in headline_table(run).rows}
    assert rows["sft"] == ["-"] * 6
    assert "-" not in rows["base"]


def test_a_run_without_evaluations_still_has_its_models(run):
    for model in ("base", *VARIANTS):
        (folder_of(run, f"eval-{model}") / "summary.json").unlink()
    table = headline_table(run)
    assert [row[0] for row in table.rows] == ["base", *VARIANTS]
    assert table.header[1] == "pass@1 (%)"


def test_each_benchmark_has_rows_of_its_own(run):
    for model in ("base", "sft"):
        write_eval(folder_of(run, f"eval-{model}") / "aime24", model, np.random.default_rng(3))
    table = headline_table(run)
    assert table.problem_sets == ["teacher (held out)", "aime24"]
    assert table.header[:2] == ["measured on", "model"]
    assert len(table.rows) == 2 * (1 + len(VARIANTS))
    on_aime = {row[0]: row for row in table.on("aime24").rows}
    assert on_aime["base"][-1] == "12 x 4"
    assert on_aime["oxa_full"][-1] == "-"
    shutil.rmtree(folder_of(run, "eval-base"))
    assert headline_table(run).on("aime24").rows[0][-1] == "-"


def test_models_with_several_benchmarks_have_a_row_with_their_mean(run):
    rng = np.random.default_rng(3)
    for model in ("base", "sft"):
        for benchmark in ("aime24", "amc23"):
            write_eval(folder_of(run, f"eval-{model}") / benchmark, model, rng)
    write_eval(folder_of(run, "eval-oxa_full") / "aime24", "oxa_full", rng)
    rows = headline_table(run).on("mean of aime24, amc23").measured
    assert [row.model for row in rows] == ["base", "sft"]
    for row in rows:
        folder = folder_of(run, f"eval-{row.model}")
        values = [
            read_summary(folder / name).metrics["pass@1"].value for name in ("aime24", "amc23")
        ]
        assert row.metrics["pass@1"].value == pytest.approx(np.mean(values))
        assert row.size == "24 x 4"


def test_seeds_that_agree_to_the_digit_show_no_interval():
    same, apart = over_trainings([0.1] * 3, num_samples=8), over_trainings([1, 3], num_samples=8)
    rows = [
        HeadlineRow("set", "many", {"pass@1": same, "mean_length": apart}, 2, 16, 2),
        HeadlineRow("set", "one", {"pass@1": same, "mean_length": apart}, 2, 8),
    ]
    table = Headline(tuple(rows))
    assert table.rows[0][1] == "10.0 [=]"
    assert table.rows[1][1] == "10.0 [10.0, 10.0]"
    assert "[=] is a number equal with all seeds" in table.note
    assert "[=]" not in Headline(tuple(rows[1:])).note
