"""`AnswerPool`: grades answers in worker processes, each answer under a hard deadline.

sympy can loop or allocate for ever on a short string, and no in-process time limit stops it, least
of all outside the main thread. So every answer is handed to a warm process; one that says nothing
until its deadline is killed and replaced, and the verdict says `timeout`; one that dies gives
`crash`. The caller's thread is the only scheduler: no signals, no helper threads.
Not here: how an answer is judged (the other files of this room).
"""

import json
import math
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Self

from megatron_reason.errors import RewardError
from megatron_reason.rewards.base import REWARDS
from megatron_reason.schema.records import Status, Verdict

_BOOTSTRAP = (
    "import sys, json\n"
    "sys.path[:] = json.loads(sys.argv[1])\n"
    "from megatron_reason.rewards._worker import serve\n"
    "serve(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))\n"
)
_START_TIMEOUT_S = 180.0
_MAX_FAILED_STARTS = 3
_MEMO_ENTRIES = 100_000
_FOREVER = float("inf")


@dataclass(frozen=True)
class _Job:
    key: bytes
    request: bytes


@dataclass(eq=False)
class _Worker:
    """One process; it owes us a message (ready, or a verdict) by `due_s`."""

    process: subprocess.Popen[bytes]
    connection: Connection
    due_s: float
    started_s: float
    ready: bool = False
    job: _Job | None = None

    @property
    def idle(self) -> bool:
        return self.ready and self.job is None

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


class AnswerPool:
    """Worker processes that grade answers; a context manager that leaves no process behind.

    Identical pairs are graded once; timeouts and crashes are not remembered between calls. One pool
    may be shared by threads, whose calls then take turns.

    Args:
        workers: number of processes.
        deadline_s: seconds one answer may take, from the moment a warm worker receives it.
        reward: name of the reward.

    Raises:
        ConfigError: no such reward.
        RewardError: workers do not start.
    """

    def __init__(
        self, workers: int = 2, deadline_s: float = 5.0, reward: str = "math_verify"
    ) -> None:
        if workers < 1 or deadline_s <= 0:
            raise RewardError(
                "AnswerPool",
                f"{workers} workers and a deadline of {deadline_s} s grade nothing.",
                "Use at least one worker and a positive deadline.",
            )
        REWARDS.get(reward, "AnswerPool")
        self.deadline_s = deadline_s
        self.reward = reward
        self._num_workers = workers
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._memo: dict[bytes, Verdict] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._workers = [self._start() for _ in range(self._num_workers)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []

    def grade(self, gold: str, response: str) -> Verdict:
        """Verdict on one response."""
        return self.grade_many([(gold, response)])[0]

    def grade_many(
        self,
        pairs: Sequence[tuple[str, str]],
        on_done: Callable[[int], None] | None = None,
    ) -> list[Verdict]:
        """Verdicts on (gold, response) pairs, in order.

        Args:
            pairs: gold answers and responses.
            on_done: called with the number of pairs that just got their verdict.

        Raises:
            RewardError: the pool is not entered, or its workers do not start.
        """
        with self._lock:
            if not self._workers:
                raise RewardError(
                    "AnswerPool",
                    "the pool has no workers.",
                    "Use it as a context manager: with AnswerPool() as pool: ...",
                )
            jobs = [_job(gold, response) for gold, response in pairs]
            repeats: dict[bytes, int] = {}
            for job in jobs:
                repeats[job.key] = repeats.get(job.key, 0) + 1
            found: dict[bytes, Verdict] = {}

            def settle(job: _Job, verdict: Verdict) -> None:
                found[job.key] = verdict
                if on_done is not None:
                    on_done(repeats[job.key])

            self._grade_all({job.key: job for job in jobs}, settle)
            return [found[job.key] for job in jobs]

    def _grade_all(self, jobs: dict[bytes, _Job], settle: Callable[[_Job, Verdict], None]) -> None:
        for worker in list(self._workers):
            if worker.job is not None:
                # Left over from a call that was interrupted; its verdict would be taken for ours.
                self._replace(worker)
        waiting = deque[_Job]()
        for job in jobs.values():
            if job.key in self._memo:
                settle(job, self._memo[job.key])
            else:
                waiting.append(job)
        while waiting or any(worker.job is not None for worker in self._workers):
            self._dispatch(waiting)
            for worker, heard in self._listen():
                job, verdict = worker.job, self._hear(worker, heard)
                if job is not None and verdict is not None:
                    self._remember(job, verdict)
                    settle(job, verdict)

    def _dispatch(self, waiting: deque[_Job]) -> None:
        """Give each idle worker a job; one that died while idle is replaced, and its job kept."""
        for index, worker in enumerate(self._workers):
            if not waiting or not worker.idle:
                continue
            try:
                worker.connection.send_bytes(waiting[0].request)
            except OSError:
                worker.end()
                self._workers[index] = self._start()
                continue
            worker.job = waiting.popleft()
            worker.started_s = time.monotonic()
            worker.due_s = worker.started_s + self.deadline_s

    def _listen(self) -> list[tuple[_Worker, bool]]:
        """Workers that spoke (True) or missed their deadline (False); waits for the first."""
        busy = [worker for worker in self._workers if not worker.idle]
        if not busy:
            return []
        first_due_s = min(worker.due_s for worker in busy)
        spoke = wait(
            [worker.connection for worker in busy], max(first_due_s - time.monotonic(), 0.0)
        )
        now_s = time.monotonic()
        return [
            (worker, worker.connection in spoke)
            for worker in busy
            if worker.connection in spoke or worker.due_s <= now_s
        ]

    def _hear(self, worker: _Worker, heard: bool) -> Verdict | None:
        """Take a worker's message, or its silence; None when there was no answer in its hands."""
        elapsed_ms = 1000 * (time.monotonic() - worker.started_s)
        if heard:
            try:
                message = json.loads(worker.connection.recv_bytes())
            except (EOFError, OSError):
                status = Status.CRASH
            else:
                return self._accept(worker, message)
        else:
            status = Status.TIMEOUT
        had_job = worker.job is not None
        exit_code = self._replace(worker)
        if had_job:
            return Verdict(0.0, status, elapsed_ms=elapsed_ms)
        self._count_failed_start(exit_code)
        return None

    def _accept(self, worker: _Worker, message: dict[str, str | float]) -> Verdict | None:
        worker.due_s = _FOREVER
        if not worker.ready:
            worker.ready = True
            self._failed_starts = 0
            return None
        worker.job = None
        return Verdict(
            score=float(message["score"]),
            status=Status(message["status"]),
            extracted=str(message["extracted"]),
            elapsed_ms=float(message["elapsed_ms"]),
        )

    def _start(self) -> _Worker:
        ours, theirs = Pipe(duplex=True)
        suicide_s = math.ceil(2 * self.deadline_s) + 1
        arguments = (json.dumps(sys.path), str(theirs.fileno()), self.reward, str(suicide_s))
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C is for the parent, which then closes the pool in order.
                start_new_session=True,
            )
        now_s = time.monotonic()
        return _Worker(process, ours, due_s=now_s + _START_TIMEOUT_S, started_s=now_s)

    def _replace(self, worker: _Worker) -> int:
        worker.end()
        self._workers[self._workers.index(worker)] = self._start()
        return worker.process.returncode

    def _count_failed_start(self, exit_code: int) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise RewardError(
                "AnswerPool",
                f"{self._failed_starts} grading processes in a row did not start (the last ended "
                f"with code {exit_code}).",
                f"Their error is above; try: {sys.executable} -c 'import math_verify'",
            )

    def _remember(self, job: _Job, verdict: Verdict) -> None:
        if verdict.status in (Status.TIMEOUT, Status.CRASH):
            return
        if len(self._memo) >= _MEMO_ENTRIES:
            self._memo.clear()
        self._memo[job.key] = verdict


def _job(gold: str, response: str) -> _Job:
    request = json.dumps([gold, response]).encode()
    return _Job(sha256(request).digest(), request)
