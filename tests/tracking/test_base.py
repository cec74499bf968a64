import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_reason.config.tracking import TrackingConfig
from megatron_reason.tracking.base import open_sinks
from megatron_reason.tracking.jsonl import read_metrics


@pytest.mark.parametrize("sinks", [(), ("tensorboard",)])
def test_metrics_go_to_the_file_and_to_every_sink_asked_for(tmp_path, sinks):
    opened = open_sinks(TrackingConfig(sinks=sinks), tmp_path)
    opened.log(1, {"train/loss": 1.0})
    opened.close()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["train/loss"] == 1.0
    assert bool(list(tmp_path.rglob("*tfevents*"))) == ("tensorboard" in sinks)


def test_all_sinks_go_on_from_the_resume_point(tmp_path):
    for resume_after, steps in ((0, (1, 2, 3)), (1, (2,))):
        opened = open_sinks(TrackingConfig(), tmp_path, resume_after=resume_after)
        for step in steps:
            opened.log(step, {"x": 1.0})
        opened.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("x")] == [1, 2]
