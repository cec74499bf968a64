import os
import signal
import subprocess
import sys
import time

import pytest

from megatron_reason.errors import ConfigError, DataError, LaunchError
from megatron_reason.pipeline.alone import run_stage_alone, training_job
from megatron_reason.pipeline.lock import stage_locks
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.schema.tables import Kind, read_table, write_table
from tests.curation.stages import sample, write_samples
from tests.pipeline.runs import settings, variants
from tools.make_tiny_model import make_tiny_model

RIGHT, WRONG = "It is \\boxed{2}.", "It is \\boxed{3}."


@pytest.fixture
def tables(tmp_path):
    """Two folders of samples, as stages of a run leave them."""
    first = write_samples(tmp_path / "10-first", [sample(0, response=RIGHT, role="demo")])
    second = write_samples(tmp_path / "20-second", [sample(1, response=WRONG, role="negative")])
    return first, second


def test_the_one_table_is_found_under_its_own_name(tables, tmp_path):
    result = run_stage_alone("grade", [str(tables[1])], tmp_path / "graded", [])
    assert (result.num_rows, result.counts["status_wrong"]) == (1, 1)


def test_a_table_may_be_given_another_name(tables, tmp_path):
    overrides = ["stage.table=mine", "stage.keep=correct"]
    result = run_stage_alone("grade", [f"mine={tables[0]}"], tmp_path / "graded", overrides)
    assert result.num_rows == 1


def test_a_stage_of_many_tables_takes_them_in_order(tables, tmp_path):
    model = make_tiny_model("LlamaForCausalLM", tmp_path / "model")
    run_stage_alone(
        "mix", [str(tables[0]), str(tables[1])], tmp_path / "mixed", [f"model.path={model}"]
    )
    assert read_table(tmp_path / "mixed", Kind.TOKENS)["role"].to_list() == ["demo", "negative"]


def test_what_does_not_fit_is_refused(tables, tmp_path):
    first = str(tables[0])
    with pytest.raises(ConfigError, match="it reads 'other'; --in gives first"):
        run_stage_alone("grade", [first], tmp_path / "x", ["stage.table=other"])
    with pytest.raises(ConfigError, match="Did you mean 'keep'"):
        run_stage_alone("grade", [first], tmp_path / "x", ["stage.kep=all"])
    with pytest.raises(ConfigError, match="Did you mean 'grade'"):
        run_stage_alone("garde", [first], tmp_path / "x", [])
    with pytest.raises(DataError, match="no folder"):
        run_stage_alone("grade", [str(tmp_path / "none")], tmp_path / "x", [])
    with pytest.raises(DataError, match="not empty"):
        run_stage_alone("grade", [first], tables[1], [])
    assert not (tmp_path / "x").exists()


def test_a_killed_stage_goes_on_and_a_finished_one_is_not_done_again(tables, tmp_path):
    model = make_tiny_model("LlamaForCausalLM", tmp_path / "model")
    out = tmp_path / "scored"
    words = ["score", "--in", str(tables[0]), "--out", str(out), "--set", f"model.path={model}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_reason.cli.app", "stage", *words], start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("jobs/*.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, "it must be killed on its way"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (out / ".samples.parquet.1.tmp").write_text("half")
    (out / "parts").mkdir(exist_ok=True)
    overrides = [f"model.path={model}"]
    result = run_stage_alone("score", [str(tables[0])], out, overrides)
    assert result.num_rows == 1
    assert not list(out.glob(".*.tmp"))
    (before,) = read_table(out, Kind.SAMPLES, filled=["ppl"])["ppl"]
    again = (out / "stage.json").stat().st_mtime_ns
    launched = ["launch.threads_per_process=2", *overrides]
    assert run_stage_alone("score", [str(tables[0])], out, launched) == result
    assert (out / "stage.json").stat().st_mtime_ns == again
    # Killed after its table was whole and before it was said to be done.
    (out / "stage.json").unlink()
    assert run_stage_alone("score", [str(tables[0])], out, overrides) == result
    assert read_table(out, Kind.SAMPLES)["ppl"].to_list() == [before]
    with pytest.raises(DataError, match="begun in the folder with other settings"):
        run_stage_alone("score", [str(tables[0])], out, [*overrides, "stage.context=raw"])
    with pytest.raises(DataError, match="begun in the folder with other settings"):
        run_stage_alone("score", [str(tables[1])], out, overrides)


def test_two_processes_do_not_work_in_one_folder(tables, tmp_path):
    out = tmp_path / "graded"
    with (
        stage_locks(out, ["graded"]),
        pytest.raises(LaunchError, match="another process works on stage 'graded'"),
    ):
        run_stage_alone("grade", [str(tables[0])], out, [])
    assert run_stage_alone("grade", [str(tables[0])], out, []).num_rows == 1


def test_training_job_of_a_variant(tmp_path, smollm2):
    config = variants(settings(tmp_path, smollm2))
    write_table(tmp_path, Kind.TOKENS, [])
    job = training_job(config, [tmp_path], variant="one", output=None)
    assert (job.method.name, job.output) == ("sft", config.run.folder / "train-one")
    assert (job.model_folder, job.table, job.train.updates) == (smollm2, tmp_path, 3)
    with pytest.raises(ConfigError, match="2 variants"):
        training_job(config, [tmp_path], variant=None, output=None)
    with pytest.raises(ConfigError, match="Did you mean 'one'"):
        training_job(config, [tmp_path], variant="onne", output=None)
    with pytest.raises(DataError, match=r"neither tokens\.parquet nor problems\.parquet"):
        training_job(config, [tmp_path / "elsewhere"], variant="one", output=None)


def test_training_job_of_a_variant_with_rollouts(tmp_path, smollm2):
    raw = variants(settings(tmp_path, smollm2)).model_dump(mode="json")
    raw["rollout"] = {"problems": "a", "max_tokens": 8}
    raw["variants"] = {"live": {"method": {"name": "grpo"}}}
    config = RunConfig.model_validate(raw)
    write_table(tmp_path, Kind.PROBLEMS, [])
    job = training_job(config, [tmp_path], variant=None, output=None)
    assert job.table is None
    assert job.rollout.problems == tmp_path
    assert job.rollout.settings == config.rollout
    assert job.rollout.engine == config.engine
    with pytest.raises(ConfigError, match="learns from rollouts, and no folder with problems"):
        training_job(config, [], variant=None, output=None)
