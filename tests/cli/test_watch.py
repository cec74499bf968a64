import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from megatron_reason.cli.watch import _File, headline, sparkline, view
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
    assert "10-train-sft: update 10 of 30, 3 s an update, 1 min left" in shown
    assert "train/loss" in shown
    assert "update 9: train/entropy_rollout fell 90% in 1 steps" in shown
    with pytest.raises(DataError, match=r"no metrics\.jsonl"):
        mreason("watch", str(tmp_path), "--once")


def test_title_warnings_and_speed_stand_where_a_low_terminal_does_not_cut():
    names = [f"train/x{i}" for i in range(60)]
    rows = [
        {"step": i, "time": 3.0 * i, **dict.fromkeys(names, 1.0), "perf/tokens_per_s": 7.0,
         "train/entropy_rollout": 1.0 if i < 9 else 0.1}
        for i in range(1, 11)
    ]  # fmt: skip
    console = Console(width=100, height=40, record=True)
    console.print(view(rows, 30, "10-train-sft"))
    top = console.export_text().splitlines()[:40]
    assert top[0].startswith("10-train-sft: update 10 of 30, 3 s an update")
    for wanted in ("train/entropy_rollout fell", "perf/tokens_per_s"):
        assert any(wanted in line for line in top)


def test_of_two_trainings_at_once_the_view_stays_with_one_until_it_is_over(tmp_path, monkeypatch):
    first, second = (
        write_metrics(tmp_path / f"{n}-train-sft" / "metrics.jsonl", n) for n in (10, 20)
    )
    os.utime(second, (1, 1))
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    source = _File(tmp_path)
    for size in (21, 22):
        assert (len(source.read()), source.name) == (10, "10-train-sft")
        write_metrics(second, size)
        os.utime(first, (1, 1))
    now += 59
    assert source.name == "10-train-sft"
    assert len(source.read()) == 10
    now += 2
    assert (len(source.read()), source.name) == (22, "20-train-sft")
    write_metrics(first, 11)
    os.utime(second, (1, 1))
    assert len(source.read()) == 22
    (second.parent / "stage.json").write_text("{}")
    assert (len(source.read()), source.name) == (11, "10-train-sft")


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


def test_the_time_left_follows_from_what_the_training_planned():
    rows = [{"step": i, "time": 60.0 * i, "progress/updates": 10.0} for i in range(1, 5)]
    measured = {"step": 4, "time": 240.0, "eval/pass@1": 0.5}
    assert headline([*rows, measured], None).startswith(
        "update 4 of 10, 60 s an update, 6 min left"
    )
    assert headline(rows, 5).startswith("update 4 of 5, 60 s an update, 1 min left")
