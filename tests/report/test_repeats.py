import shutil

import numpy as np
import polars as pl
import pytest
import yaml

from megatron_reason.evaluation.summary import read_summary
from megatron_reason.report.page import build_report
from megatron_reason.report.repeats import gathered
from megatron_reason.report.run_data import read_run
from megatron_reason.report.side_by_side import read_runs
from megatron_reason.report.table import headline_of, headline_table
from tests.report.runs import folder_of, write_eval

SEEDS = {"sft": "sft", "sft_lp": "sft", "oxa_mle": "sft"}


@pytest.fixture
def run(finished_run, tmp_path):
    """The finished run, three of its variants being one with three seeds."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    for name, model in SEEDS.items():
        config["variants"][name]["repeats"] = model
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def test_the_mean_of_benchmarks_is_taken_per_training_and_then_over_seeds(run):
    rng = np.random.default_rng(5)
    for name in SEEDS:
        for benchmark in ("aime24", "amc23"):
            write_eval(folder_of(run, f"eval-{name}") / benchmark, name, rng)
    (row,) = headline_table(run).on("mean of aime24, amc23").measured
    values = [
        np.mean([
            read_summary(folder_of(run, f"eval-{name}") / benchmark).metrics["pass@1"].value
            for benchmark in ("aime24", "amc23")
        ])
        for name in SEEDS
    ]  # fmt: skip
    found = row.metrics["pass@1"]
    assert found.value == pytest.approx(np.mean(values))
    half = 4.303 * np.std(values, ddof=1) / np.sqrt(3)
    assert found.high - found.value == pytest.approx(half)
    assert row.size == "24 x 4 x 3 seeds"


def test_several_seeds_are_one_row_with_a_t_interval(run):
    table = headline_table(run)
    assert [row.model for row in table.measured] == ["base", "sft", "oxa_full"]
    row = table.measured[1]
    values = [
        read_summary(folder_of(run, f"eval-{name}")).metrics["pass@4"].value for name in SEEDS
    ]
    half = 4.303 * np.std(values, ddof=1) / np.sqrt(3)
    found = row.metrics["pass@4"]
    assert found.value == pytest.approx(np.mean(values))
    assert found.high == pytest.approx(min(np.mean(values) + half, 1.0))
    assert found.low == pytest.approx(max(np.mean(values) - half, 0.0))
    assert row.size == "12 x 4 x 3 seeds"
    single = read_summary(folder_of(run, "eval-oxa_full")).metrics
    assert table.measured[2].metrics == single
    assert table.markdown().endswith("the other rows have 95 % intervals over problems.\n")


def test_curves_are_means_and_pages_name_models_alone(run):
    data = gathered(read_run(run))
    apart = read_run(run).training
    mean = np.mean([apart[name]["train/loss"].to_numpy() for name in SEEDS], axis=0)
    assert data.training["sft"]["train/loss"].to_numpy() == pytest.approx(mean)
    assert data.training.keys() == {"sft", "oxa_full"}
    page = build_report(run).read_text()
    assert "95 % t intervals" in page
    numbers = pl.read_csv(run / "report" / "train_loss.csv")
    assert set(numbers["model"]) == {"sft", "oxa_full"}
    trainings = (run / "report" / "trainings.md").read_text()
    assert trainings == headline_of(read_run(run)).markdown()
    assert all(f"| {name} |" in trainings for name in SEEDS)


def test_without_seeds_there_is_no_second_table(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    build_report(run)
    assert not (run / "report" / "trainings.md").exists()


def test_a_run_without_seeds_stays_as_it_is(finished_run):
    data = read_run(finished_run)
    assert gathered(data) is data


def test_one_seed_that_is_done_keeps_its_interval_over_problems(run):
    for name in ("sft_lp", "oxa_mle"):
        (folder_of(run, f"eval-{name}") / "summary.json").unlink()
    row = headline_table(run).measured[1]
    assert row.metrics == read_summary(folder_of(run, "eval-sft")).metrics
    assert row.size == "12 x 4"


def test_several_runs_side_by_side(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    data = read_runs([run, other])
    assert data.models[:3] == ["run: base", "run: sft", "run: oxa_full"]
    assert data.seeds == {"run: sft": 3, "other: sft": 3}
