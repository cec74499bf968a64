import json
import os

import pytest
import yaml

from megatron_reason.errors import ConfigError, DataError, LaunchError
from megatron_reason.pipeline.execute import choose, execute
from megatron_reason.pipeline.lock import stage_locks
from megatron_reason.pipeline.manifest import read_manifest
from megatron_reason.pipeline.plan import make_plan
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.schema.tables import Kind, read_table
from tests.pipeline.runs import ran, settings


@pytest.fixture
def config(tmp_path, smollm2):
    ran()
    return settings(tmp_path, smollm2)


def with_stages(config: RunConfig, **changes) -> RunConfig:
    """Counting stages changed by name; None takes one out."""
    raw = config.model_dump()
    raw["curate"] = [
        stage | changes.get(stage["name"], {})
        for stage in raw["curate"]
        if changes.get(stage["name"], {}) is not None
    ]
    return RunConfig.model_validate(raw)


def test_stages_run_once_and_leave_their_papers(config):
    folder = execute(config, to="c")
    assert ran() == ["a", "b", "c"]
    assert (folder / "30-c" / "count").read_text() == "3"
    manifest = read_manifest(folder / "30-c")
    plan = make_plan(config)
    assert manifest.hash == plan[2].hash
    assert manifest.inputs == {"b": plan[1].hash}
    assert (manifest.num_rows, manifest.counts) == (3, {"seen": 1})
    assert json.loads((folder / "plan.json").read_text())[2]["name"] == "c"
    assert (folder / "command.txt").read_text().strip()
    assert "torch" in json.loads((folder / "environment.json").read_text())["versions"]
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert RunConfig.model_validate(written) == config

    execute(config, to="c")
    assert ran() == []


def test_only_what_changed_and_what_follows_runs_again(config):
    execute(config, to="c")
    ran()
    execute(with_stages(config, b={"text": "new"}), to="c")
    assert ran() == ["b", "c"]


def test_ranges_of_stages(config):
    execute(config, to="b")
    assert ran() == ["a", "b"]
    execute(config, only="c")
    assert ran() == ["c"]
    names = [stage.name for stage in choose(make_plan(config), from_="b", to="c")]
    assert names == ["b", "c"]
    with pytest.raises(ConfigError, match="comes after"):
        choose(make_plan(config), from_="c", to="a")
    with pytest.raises(ConfigError, match="one of the two"):
        choose(make_plan(config), only="c", to="a")


def test_inputs_that_are_missing_or_stale_are_refused(config):
    with pytest.raises(LaunchError, match="reads 'b'"):
        execute(config, only="c")
    execute(config, to="c")
    with pytest.raises(LaunchError, match="other settings"):
        execute(with_stages(config, a={"text": "new"}), only="b")


def test_a_benchmark_whose_file_is_missing_is_told_before_anything_is_done(config, tmp_path):
    raw = config.model_dump()
    raw["eval"] = {"benchmarks": ["aime24"], "benchmark_folder": tmp_path / "none"}
    asked = RunConfig.model_validate(raw)
    with pytest.raises(DataError, match=r"(?s)aime24.*eval.benchmark_folder"):
        execute(asked)
    assert ran() == []
    execute(asked, to="c")
    assert ran() == ["a", "b", "c"]


def test_interrupted_stage_begins_anew(config):
    with pytest.raises(DataError, match="told to fail"):
        execute(with_stages(config, b={"fails": True}), to="c")
    assert ran() == ["a", "b"]
    folder = config.run.folder
    assert read_manifest(folder / "20-b") is None
    (folder / "20-b" / "leftover").write_text("half a table")
    execute(config, to="c")
    assert ran() == ["b", "c"]
    assert not (folder / "20-b" / "leftover").exists()


def test_stages_keep_their_results_when_their_number_changes(config):
    folder = execute(config, to="c")
    ran()
    raw = config.model_dump()
    raw["curate"] = [{"stage": "count_for_tests", "name": "before"}, *raw["curate"]]
    execute(RunConfig.model_validate(raw), to="c")
    assert ran() == ["before"]
    assert sorted(path.name for path in folder.glob("*-*")) == ["10-before", "20-a", "30-b", "40-c"]


def test_a_run_folder_in_use_is_refused(config):
    with (
        stage_locks(config.run.folder, ["a"]),
        pytest.raises(LaunchError, match=f"process {os.getpid()}"),
    ):
        execute(config, to="a")
    assert ran() == []


def test_side_by_side_makes_the_same_and_does_nothing_twice(config):
    raw = config.model_dump() | {"launch": {"stages_at_once": 2}}
    beside = RunConfig.model_validate(raw)
    folder = execute(beside, to="c")
    assert (folder / "30-c" / "count").read_text() == "3"
    assert [stage.hash for stage in make_plan(beside)] == [s.hash for s in make_plan(config)]
    assert ran() == []  # in this process
    execute(config, to="c")
    assert ran() == []


def test_real_stages_make_real_tables(tmp_path, smollm2):
    curate = [
        {"stage": "ingest", "name": "teacher", "source": "reasoning_gym:gsm_symbolic", "size": 12,
         "heldout_fraction": 0.4},
        {"stage": "grade", "name": "graded", "table": "teacher", "keep": "correct"},
    ]  # fmt: skip
    folder = execute(settings(tmp_path, smollm2, curate=curate), to="graded")
    graded = read_table(folder / "20-graded", Kind.SAMPLES, filled=("status",))
    assert read_manifest(folder / "20-graded").num_rows == len(graded) > 0
