import json

import pytest
import yaml

from megatron_reason.errors import ConfigError, DataError, LaunchError
from megatron_reason.pipeline import workers
from megatron_reason.pipeline.lock import stage_locks
from megatron_reason.schema.tables import Kind, read_table, write_table
from megatron_reason.training.jobs import TrainJob, read_job
from tests.cli.test_app import mreason


@pytest.fixture
def config(tmp_path, smollm2):
    path = tmp_path / "run.yaml"
    raw = {
        "run": {"name": "small", "dir": str(tmp_path / "runs")},
        "model": {"path": str(smollm2)},
        "curate": [
            {"stage": "ingest", "name": "teacher", "source": "reasoning_gym:gsm_symbolic",
             "size": 12, "heldout_fraction": 0.4},
            {"stage": "grade", "name": "graded", "table": "teacher"},
            {"stage": "select", "name": "demos", "table": "graded", "role": "demo", "count": 4,
             "where": "correct", "rule": {"name": "random"}},
            {"stage": "mix", "name": "mixed", "tables": [{"table": "demos"}]},
        ],
        "train": {"updates": 3, "optim": {"lr": 1e-4}},
        "variants": {
            "sft": {"table": "mixed", "method": {"name": "sft", "demos_per_update": 2}},
            "oxa": {"table": "mixed", "method": {"name": "oxa", "negatives_per_update": 0}},
        },
    }  # fmt: skip
    path.write_text(yaml.safe_dump(raw))
    return path


def test_run_makes_tables_and_plan_then_says_done(config, tmp_path):
    shown = json.loads(mreason("run", str(config), "--to", "mixed", "--json").stdout)
    assert shown["folder"] == str(tmp_path / "runs" / "small")
    tokens = read_table(tmp_path / "runs" / "small" / "40-mixed", Kind.TOKENS)
    assert len(tokens) == 4
    states = {
        r["name"]: r["state"] for r in json.loads(mreason("plan", str(config), "--json").output)
    }
    assert states["mixed"] == "done"
    assert states["train-sft"] == "to do"
    assert (
        'clamp "exact"'
        in mreason("plan", str(config), "--set", "variants.oxa.method.preset=paper").output
    )
    overridden = mreason("plan", str(config), "--json", "--set", "curate.demos.count=3").output
    states = {row["name"]: row["state"] for row in json.loads(overridden)}
    assert (states["graded"], states["demos"], states["mixed"]) == ("done", "changed", "changed")


def test_train_writes_a_job_that_workers_can_read(config, tmp_path):
    job_file = tmp_path / "job.json"
    write_table(tmp_path, Kind.TOKENS, [])
    shown = mreason(
        "train", str(config), "--table", str(tmp_path), "--variant", "oxa", "--job-file",
        str(job_file), "--out", str(tmp_path / "trained"),
    ).output  # fmt: skip
    assert str(job_file) in shown
    job = read_job(job_file)
    assert isinstance(job, TrainJob)
    assert (job.method.name, job.train.updates, job.table) == ("oxa", 3, tmp_path)


def test_train_asks_which_variant(config, tmp_path):
    write_table(tmp_path, Kind.TOKENS, [])
    with pytest.raises(ConfigError, match="2 variants"):
        mreason("train", str(config), "--table", str(tmp_path))
    with pytest.raises(ConfigError, match="Did you mean 'oxa'"):
        mreason("train", str(config), "--table", str(tmp_path), "--variant", "oxxa")


@pytest.mark.parametrize("out", ["elsewhere", "runs/small/50-train-oxa", None])
def test_a_second_training_in_one_folder_is_refused(config, tmp_path, monkeypatch, out):
    write_table(tmp_path, Kind.TOKENS, [])
    given = [] if out is None else ["--out", str(tmp_path / out)]
    command = ["train", str(config), "--table", str(tmp_path), "--variant", "oxa", *given]
    of_a_run = out is not None and out.startswith("runs")
    begun = []

    def train(job, *_):
        begun.append(job)
        with pytest.raises(LaunchError, match="another process works on stage"):
            mreason(*command)
        if of_a_run:
            # The lock that `mreason run` takes.
            with pytest.raises(LaunchError), stage_locks(tmp_path / "runs/small", ["train-oxa"]):
                pass

    monkeypatch.setattr(workers, "run_on_ranks", train)
    mreason(*command)
    mreason(*command)
    assert len(begun) == 2


def test_stages_run_alone_one_after_the_other(tmp_path):
    teacher, graded = tmp_path / "10-teacher", tmp_path / "graded"
    mreason("stage", "ingest", "--out", str(teacher), "--set",
            "stage.source=reasoning_gym:gsm_symbolic", "--set", "stage.size=6")  # fmt: skip
    shown = mreason("stage", "grade", "--in", str(teacher), "--out", str(graded), "--json")
    result = json.loads(shown.stdout)
    rows = read_table(graded, Kind.SAMPLES, filled=("status",))
    assert result["num_rows"] == len(rows) > 0

    parts = [tmp_path / f"part{index}" for index in range(2)]
    for index, part in enumerate(parts):
        mreason("stage", "grade", "--in", str(teacher), "--out", str(part), "--shard", f"{index}/2")
    taken = [read_table(part, Kind.SAMPLES)["sample_id"].to_list() for part in parts]
    assert taken[0] + taken[1] == rows["sample_id"].to_list()
    assert all(taken)
    with pytest.raises(ConfigError, match="is no shard"):
        mreason("stage", "grade", "--in", str(teacher), "--out", str(tmp_path / "x"), "--shard",
                "2/2")  # fmt: skip
    again = mreason("stage", "grade", "--in", str(teacher), "--out", str(graded), "--json")
    assert json.loads(again.stdout) == result, "done before"
    with pytest.raises(DataError, match="begun in the folder with other settings"):
        mreason("stage", "grade", "--in", str(teacher), "--out", str(graded), "--set",
                "stage.keep=correct")  # fmt: skip
    with pytest.raises(DataError, match="not empty"):
        mreason("stage", "grade", "--in", str(teacher), "--out", str(tmp_path))
    with pytest.raises(DataError, match="no folder"):
        mreason("stage", "grade", "--in", str(tmp_path / "none"), "--out", str(tmp_path / "x"))
    with pytest.raises(ConfigError, match="Did you mean 'grade'"):
        mreason("stage", "graed", "--out", str(tmp_path / "x"))
    with pytest.raises(ConfigError, match="it reads 'other'"):
        mreason("stage", "grade", "--in", str(teacher), "--out", str(tmp_path / "x"), "--set",
                "stage.table=other")  # fmt: skip
