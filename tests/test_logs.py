import logging
import time

import pytest

from megatron_reason.logs import get_logger, progress, setup_logging


def test_only_rank_0_speaks_below_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    log = get_logger("megatron_reason.somewhere")
    setup_logging(rank=0)
    log.info("from the first")
    setup_logging(rank=3)
    log.info("from the fourth")
    log.warning("trouble")
    written = capsys.readouterr().err
    assert "from the first" in written
    assert "from the fourth" not in written
    assert "[rank 3] trouble" in written


def test_progress_in_a_log_file_says_how_far_how_fast_and_how_long(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup_logging()
    with progress("count", 4, "sheep") as bar:
        for _ in range(4):
            bar.advance(note="asleep")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 1
    assert "count 4/4 sheep" in lines[-1]
    assert "/s  0 s left  asleep" in lines[-1]


def test_what_an_earlier_process_did_counts_as_done_but_not_as_speed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup_logging()
    with progress("count", 1_000_001, "sheep", done=1_000_000) as bar:
        time.sleep(0.2)
        bar.advance()
    line = capsys.readouterr().err.splitlines()[-1]
    assert "count 1000001/1000001 sheep" in line
    rate = float(line.split("sheep")[1].split("/s")[0])
    assert 0 < rate < 6


def test_a_hidden_bar_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    with progress("count", 2, "sheep", shown=False) as bar:
        bar.advance(1)
    assert capsys.readouterr().err == ""
    assert bar.done == 1
    logging.getLogger("megatron_reason").handlers.clear()
