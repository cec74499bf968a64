import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_reason.cli.watch import headline, sparkline
from megatron_reason.errors import DataError
from tests.cli.test_app import ROOT, mreason


def write_metrics(path: Path, num_rows: int) -> Path:
    rows = [
        {
            "step": i,
            "time": 3.0 * i,
            "train/loss": 1 / i,
            "train/entropy_rollout": 1.0 if i < 9 else 0.1,
        }
        for i in range(1, num_rows + 1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_watch_shows_numbers_time_left_and_warnings(tmp_path):
    write_metrics(tmp_path / "run" / "10-train-sft" / "metrics.jsonl", 10)
    shown = mreason("watch", str(tmp_path / "run"), "--once", "--updates", "30").stdout
    assert "update 10 of 30, 3 s an update, 1 min left" in shown
    assert "train/loss" in shown
    assert "update 9: train/entropy_rollout fell 90% in 1 steps" in shown
    with pytest.raises(DataError, match=r"no metrics\.jsonl"):
        mreason("watch", str(tmp_path), "--once")


def test_watch_reads_a_remote_tail(tmp_path):
    lines = write_metrics(tmp_path / "metrics.jsonl", 5).read_bytes()
    command = [sys.executable, "-m", "megatron_reason.cli.app", "watch", "-", "--once"]
    seen = subprocess.run(
        command, cwd=ROOT, input=b'ning": 3}\n' + lines + b'{"step": 6, "ti', capture_output=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert "update 5," in seen.stdout.decode()


def test_sparklines_and_headlines():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([2.0, 2.0, float("nan")]) == "▁▁·"
    assert len(sparkline(list(range(1000)))) <= 24
    assert headline([{"step": 1}], None) == "update 1"
