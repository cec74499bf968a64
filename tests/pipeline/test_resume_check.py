import json
from itertools import count
from pathlib import Path

import pytest

from megatron_reason.config.launch import LaunchConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import CheckpointError, ConfigError
from megatron_reason.files import read_json
from megatron_reason.pipeline import resume_check as check
from megatron_reason.tracking.jsonl import read_metrics
from megatron_reason.training.jobs import TrainJob, read_job
from tests.training.online_run import make_job
from tests.training.tiny_run import short, start, write_job


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    output = tmp_path / "check"
    as_held = short().checkpoint.model_copy(update={"portable": False})
    train = short().model_copy(update={"checkpoint": as_held})
    job = read_job(write_job(tmp_path, output, train=train))
    assert isinstance(job, TrainJob)
    report = check.resume_check(job, LaunchConfig(processes=1), updates=2)
    assert report == check.ResumeReport(4, 2, 0.0, weights_are_equal=True)
    assert read_json(output / check.REPORT)["updates"] == 4
    steps = [
        json.loads(line)["step"]
        for line in (output / "halves/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4]
    assert "resumed from iter_0000002" in (output / "logs/second_half.log").read_text()

    # Saved as the ranks hold it, which is no use to other tensor-parallel ranks.
    layout = ParallelConfig(tensor_model_parallel_size=2)
    wider = train.model_copy(update={"updates": 4, "parallel": layout})
    process = start(write_job(tmp_path, output / "halves", train=wider))
    refusal, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "saved for TP 1 x PP 1 only; this run has TP 2 x PP 1" in refusal


@pytest.mark.parametrize(
    ("stopped_at", "anew", "refusal"),
    [
        (3, False, None),
        (4, False, "the first half made all 4 updates, so nothing was left to resume"),
        (3, True, "did not go on from the first; it began anew"),
        (0, False, "did not go on from the first; it began anew"),
    ],
)
def test_what_did_not_resume_is_no_proof(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped_at: int,
    anew: bool,
    refusal: str | None,
) -> None:
    now = count()

    def train(job: TrainJob, name: str, *_: object) -> None:
        """As a run that is exact, but for where it stops and begins."""
        log = job.output / "metrics.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        if anew:
            log.unlink(missing_ok=True)
        last = stopped_at if job.stop_after else 4
        with log.open("a", encoding="utf-8") as stream:
            for step in range(len(read_metrics(log)) + 1, last + 1):
                row = {"step": step, "time": next(now), "train/loss": 1.0, "train/grad_norm": 1.0}
                stream.write(json.dumps(row) + "\n")
        (job.output / "huggingface").mkdir(exist_ok=True)
        (job.output / "huggingface/model.safetensors").touch()

    monkeypatch.setattr(check, "run_on_ranks", train)
    output = tmp_path / "check"
    job = read_job(write_job(tmp_path, output, train=short()))
    assert isinstance(job, TrainJob)
    if refusal is None:
        found = check.resume_check(job, LaunchConfig(processes=1), updates=2)
        assert found == check.ResumeReport(4, 3, 0.0, weights_are_equal=True)
    else:
        with pytest.raises(CheckpointError, match=refusal):
            check.resume_check(job, LaunchConfig(processes=1), updates=2)


def test_a_step_that_makes_all_updates_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, "run", "grpo", {}, rollout={"updates_per_step": 16}, table=None)
    with pytest.raises(ConfigError, match="Give --updates 9 or more"):
        check.resume_check(job, LaunchConfig(processes=1), updates=8)


def test_a_difference_is_found_in_whichever_metric_it_is(tmp_path: Path) -> None:
    row = {"step": 1, "train/loss": 2.0, "train/grad_norm": 4.0}
    for name, rows in {
        "a": [row], "b": [row | {"train/grad_norm": 4.1}], "c": [row | {"step": 2}],
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert check._largest_difference(tmp_path / "a", tmp_path / "a") == 0
    found = check._largest_difference(tmp_path / "a", tmp_path / "b")
    assert found == pytest.approx(0.025)
    with pytest.raises(CheckpointError, match="other updates"):
        check._largest_difference(tmp_path / "a", tmp_path / "c")
