"""The pool under hostile text, killed workers and threads: bounded time, no process left."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megatron_reason.errors import ConfigError, RewardError
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.records import Status

TOWER = r"\boxed{9^{9^{9^{9^9}}}}"
PATHOLOGICAL = [
    TOWER,
    r"\boxed{10^{10^{10}}}",
    r"\boxed{100000000!}",
    r"\boxed{(x+1)^{1000000}}",
    "$" + "{" * 5000 + "1" + "}" * 5000 + "$",
    r"\boxed{" + r"\frac{1}{" * 500 + "2" + "}" * 500 + "}",
    r"\boxed{" + "7" * 10_000 + "}",
    r"\boxed{" + r"\sqrt{2+" * 5000 + "2" + "}" * 5000 + "}",
    r"\sqrt{2+" * 5000 + "2" + "}" * 5000,
    r"\boxed{\frac{1}{2" + r"\left(" * 50,
    r"\boxed{" + "x+" * 500_000 + "1}",
    "1 and " * 170_000,
    r"\boxed{1}\x00" * 50_000,
    "(" * 3000 + "1" + ")" * 3000,
    "1+" * 20_000 + "1",
    "answer " * 20_000,
    "\\boxed{" * 20_000,
    "\x00\ud800",
]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return state != "Z"


def pids(pool):
    return [worker.process.pid for worker in pool._workers]


def test_pathological_answers_end_in_time_and_leave_nothing_behind():
    with AnswerPool(workers=2, deadline_s=1) as pool:
        pool.grade("1", "1")
        seen = set(pids(pool))
        started_s = time.monotonic()
        done = []
        pairs = [("5", text) for text in PATHOLOGICAL] + [("5", r"\boxed{5}"), ("5", TOWER)]
        verdicts = pool.grade_many(pairs, on_done=done.append)
        elapsed_s = time.monotonic() - started_s
        seen |= set(pids(pool))
    assert sum(done) == len(pairs)
    assert verdicts[0].status is verdicts[-1].status is Status.TIMEOUT
    assert verdicts[-2].status is Status.OK
    assert all(verdict.status is not Status.OK for verdict in verdicts[: len(PATHOLOGICAL)])
    # Each answer may cost its deadline and a fresh interpreter.
    assert elapsed_s < len(pairs) * 4
    assert not [pid for pid in seen if alive(pid)]


@pytest.mark.parametrize("reward", ["qwen_math", "deepscaler"])
def test_long_responses_do_not_wait_behind_a_stuck_one(reward):
    """A write to a worker that does not read would block past every deadline."""
    long = "</think>\\boxed{" + "7" * 250_000 + "}"
    stuck = r"</think>\boxed{(10**8)!}"
    with AnswerPool(workers=1, deadline_s=1, reward=reward) as pool:
        started_s = time.monotonic()
        found = pool.grade_many(
            [("5+x", stuck), ("5", long), ("6", long), ("5", "</think>\\boxed{5}")]
        )
        assert time.monotonic() - started_s < 60
    assert found[0].status is Status.TIMEOUT
    assert found[-1].status is Status.OK


def test_a_worker_killed_at_work_is_a_crash_and_is_replaced():
    with AnswerPool(workers=1, deadline_s=30) as pool:
        pool.grade("1", "1")
        victim = pids(pool)[0]
        threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()
        verdict = pool.grade("5", TOWER)
        assert verdict.status is Status.CRASH
        assert verdict.elapsed_ms > 300
        assert pool.grade("5", r"$5$").status is Status.OK
        assert pids(pool) != [victim]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_what_asks_a_job_to_leave_is_not_the_workers(number: signal.Signals):
    with AnswerPool(workers=1) as pool:
        pool.grade("1", "1")
        before = pids(pool)
        os.kill(before[0], number)
        time.sleep(0.2)
        assert pool.grade("5", r"$5$").status is Status.OK
        assert pids(pool) == before


def test_a_worker_killed_while_idle_costs_no_answer():
    with AnswerPool(workers=1) as pool:
        pool.grade("1", "1")
        os.kill(pids(pool)[0], signal.SIGKILL)
        pool._workers[0].process.wait()
        assert pool.grade("5", r"$5$").status is Status.OK


def test_works_from_several_threads_at_once():
    found = {}

    def work(pool, number):
        pairs = [(str(number), f"The answer is ${i}$") for i in range(10)]
        found[number] = [verdict.status for verdict in pool.grade_many(pairs)]

    with AnswerPool(workers=2) as pool:
        threads = [threading.Thread(target=work, args=(pool, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    for number in range(4):
        assert found[number] == [Status.OK if i == number else Status.WRONG for i in range(10)]


def test_identical_pairs_are_graded_once():
    done = []
    with AnswerPool(workers=1) as pool:
        first = pool.grade_many([("5", "$5$")] * 3, on_done=done.append)
        again = pool.grade("5", "$5$")
    assert done == [3]
    # The very same measurement, not a second one that came out alike.
    assert first[0] is first[2] is again


def test_an_interrupted_call_does_not_leak_into_the_next():
    def interrupt(_):
        raise KeyboardInterrupt

    with AnswerPool(workers=2, deadline_s=20) as pool:
        pool.grade("1", "1")
        with pytest.raises(KeyboardInterrupt):
            pool.grade_many([("5", TOWER), ("5", "$5$")], on_done=interrupt)
        assert pool.grade("6", "$6$").status is Status.OK


def test_workers_end_when_the_parent_is_killed():
    script = (
        "import sys\n"
        "from megatron_reason.rewards.pool import AnswerPool\n"
        "with AnswerPool(workers=2, deadline_s=1) as pool:\n"
        "    pool.grade('1', '1')\n"
        "    print(*[worker.process.pid for worker in pool._workers], flush=True)\n"
        "    pool.deadline_s = 1000\n"
        f"    pool.grade('5', {TOWER!r})\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline_s = time.monotonic() + 15
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    assert len(workers) == 2
    assert not [pid for pid in workers if alive(pid)]


def test_warm_up_waits_for_every_worker():
    with AnswerPool(workers=2) as pool:
        pool.warm_up()
        assert all(worker.ready for worker in pool._workers)


def test_refusals():
    with pytest.raises(ConfigError, match="math_verify"):
        AnswerPool(reward="math_verfy")
    with pytest.raises(RewardError, match="at least one worker"):
        AnswerPool(workers=0)
    with pytest.raises(RewardError, match="context manager"):
        AnswerPool().grade("1", "1")
