"""Live loops on a disk that fills up, through the launcher, as a user starts them."""

from pathlib import Path

import pytest

from tests.training.online_run import make_data, make_job, metrics, rollouts
from tests.training.tiny_run import launch, leave_room_for

FEW = {"prompts_per_update": 3, "rollouts_per_prompt": 4}
UPDATES = 6


@pytest.mark.parametrize(("steps_ahead", "stages"), [(0, 2), (1, 1)])
def test_a_full_disk_stops_the_loop_with_a_word_and_it_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path, steps_ahead: int, stages: int
) -> None:
    make_data(tmp_path)
    job = make_job(tmp_path, "run", "grpo", FEW, updates=UPDATES, every=2,
                   rollout={"steps_ahead": steps_ahead},
                   parallel={"pipeline_model_parallel_size": stages})  # fmt: skip
    job.output.mkdir()
    path = job.output / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    (job.output / "rollouts").symlink_to(small_disk)
    leave_room_for(4, small_disk)
    with launch(path, job.output, processes=stages) as process:
        report, _ = process.communicate(timeout=400)
    assert process.returncode not in (0, 75)
    assert "the rollouts of this step cannot be written: No space left on device" in report
    assert "Make room; the same command goes on from the last checkpoint." in report
    assert sorted(file.name for file in small_disk.iterdir()) == [
        f"step_{step:06d}.jsonl" for step in range(1, 5)
    ], "no half-written file"
    leave_room_for(100, small_disk)
    with launch(path, job.output, processes=stages) as process:
        report, _ = process.communicate(timeout=400)
    assert process.returncode == 0, report
    # One step ahead the fifth step's rollouts fail during the updates of the fourth.
    assert f"resumed from iter_000000{4 - 2 * steps_ahead}" in report
    assert [row["step"] for row in metrics(job.output)] == list(range(1, UPDATES + 1))
    assert all(len(rollouts(job.output, step)) == 12 for step in range(1, UPDATES + 1))
