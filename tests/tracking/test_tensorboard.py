import subprocess
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_reason.tracking.tensorboard import TensorBoardSink


def scalars(folder, tag):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_shows_each_metric_and_forgets_steps_made_again(tmp_path):
    sink = TensorBoardSink(tmp_path)
    for step in (1, 2, 3, 4):
        sink.log(step, {"train/loss": float(step), "train/lr": 0.5})
    sink.close()
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]

    resumed = TensorBoardSink(tmp_path, resume_after=2)
    resumed.log(3, {"train/loss": 30.0, "train/lr": 0.5})
    resumed.close()
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_the_writer_needs_no_torch():
    code = "import sys, megatron_reason.tracking.tensorboard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
