from pathlib import Path

from megatron_reason.config.template import TemplateConfig
from megatron_reason.engine import checkpoint_folder as files
from megatron_reason.schema.metrics import MEASURED, StepMetrics, as_counts
from megatron_reason.training import loop
from tests.distributed import spawn
from tests.training import online_run
from tests.training.online_run import make_data, make_job


def test_a_stop_between_the_updates_of_a_step_comes_after_it(tmp_path: Path) -> None:
    make_data(tmp_path)
    job = make_job(
        tmp_path, "run", "grpo", {"prompts_per_update": 1, "rollouts_per_prompt": 2}, updates=6,
        rollout={"updates_per_step": 2}, table=None,
    )  # fmt: skip
    first = job.model_copy(update={"stop_after": 3})
    spawn(online_run.run_all, 1, [first])
    checkpoints = job.output / "checkpoints"
    assert [path.name for path in files.complete(checkpoints)] == ["iter_0000004"]
    # What was passed before the start is passed for good.
    spawn(online_run.run_all, 1, [first])
    rows = [row for row in online_run.metrics(job.output) if row["step"]]
    assert [row["step"] for row in rows] == [2, 4, 6]
    # Each of the two runs saved after its last line only.
    assert ["time/save" in row for row in rows] == [False, False, False]
    assert all(row["perf/tflops_per_rank"] > 0 for row in rows)


def test_the_line_after_a_save_says_how_long_training_waited_for_it(tmp_path: Path) -> None:
    make_data(tmp_path)
    job = make_job(
        tmp_path, "run", "grpo", {"prompts_per_update": 1, "rollouts_per_prompt": 2}, updates=3,
        rollout={"updates_per_step": 1}, table=None,
    )  # fmt: skip
    checkpoint = job.train.checkpoint.model_copy(update={"every": 1, "asynchronous": False})
    train = job.train.model_copy(update={"checkpoint": checkpoint})
    # A run that was killed before its first checkpoint left its lines; they are made anew.
    job.output.mkdir()
    (job.output / "metrics.jsonl").write_text('{"step": 0, "time": 1}\n{"step": 1, "time": 2}\n')
    spawn(online_run.run_all, 1, [job.model_copy(update={"train": train})])
    first, *later = online_run.metrics(job.output)
    assert first["step"] == 1
    assert "time/save" not in first
    assert all(0 < row["time/save"] < 60 for row in later)
    assert len(later) == 2


def test_a_checkpoint_is_judged_by_what_was_measured_of_it_and_by_means_of_the_rest() -> None:
    means, name = StepMetrics(), f"{MEASURED}lab/pass@1"
    for loss, found in ((1.0, {name: 0.9}), (3.0, {}), (5.0, {name: 0.1})):
        means.merge(as_counts({"train/loss": loss, **found}))
    assert loop._of_checkpoint(means, {"train/loss": 5.0, name: 0.1}) == {
        "train/loss": 3.0, name: 0.1,
    }  # fmt: skip
    assert loop._of_checkpoint(means, {"train/loss": 5.0}) == {"train/loss": 3.0}


def test_the_line_of_a_step_says_what_its_time_went_to() -> None:
    found = {
        "reward/mean": 0.40625, "train/loss": -0.0123456, "time/step": 12.34,
        "time/rollout": 10.06, "time/train": 2.0, "time/sync": 0.04, "sync/bytes": 7.0,
    }  # fmt: skip
    assert loop._note(found) == (
        "reward 0.4062  loss -0.01235  12.3 s (rollout 10.1, train 2.0, sync 0.0)"
    )
    assert loop._note({"train/loss": 2.0, "time/step": 0.26}) == "loss 2  0.3 s"


def test_a_run_with_other_prompts_is_another_run(tmp_path: Path) -> None:
    make_data(tmp_path)
    job = make_job(tmp_path, "run", "grpo", {})
    assert job.template is not None
    other = job.model_copy(update={"template": TemplateConfig(suffix=" Think.")})
    one, two = loop.fingerprint(job), loop.fingerprint(other)
    assert {key for key in one if one[key] != two[key]} == {"template"}
    assert loop.fingerprint(job.model_copy()) == one
