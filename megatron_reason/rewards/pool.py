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
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Self

from megatron_reason.errors import RewardError
from megatron_reason.logs import get_logger
from megatron_reason.rewards.base import REWARDS, Limits, Reward, StatusRates
from megatron_reason.schema.records import Status, Verdict

_LOGGER = get_logger(__name__)
_BOOTSTRAP = (
    "import sys, json\n"
    "sys.path[:] = json.loads(sys.argv[1])\n"
    "from megatron_reason.rewards._worker import serve\n"
    "serve(int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))\n"
)
_START_TIMEOUT_S = 180.0
_MAX_FAILED_STARTS = 3
_MEMO_ENTRIES = 100_000
_FOREVER = float("inf")
_MOST_AHEAD = 16
# Less than a pipe holds: a write never waits for a worker that is stuck.
_MOST_BYTES_AHEAD = 32_000
_NAP_S = 0.001


@dataclass(frozen=True)
class _Job:
    key: bytes
    request: bytes
    plain: Verdict | None
    """The verdict, where no worker is needed for it."""


@dataclass(eq=False)
class _Worker:
    """One process and the jobs in its pipe; it owes us its next message by `due_s`.

    A few jobs lie ahead of the one at work, so that a worker never waits for us. The first is the
    one at work: its verdict comes next, and a silent or dead worker is its fault.
    """

    process: subprocess.Popen[bytes]
    connection: Connection
    due_s: float
    started_s: float
    ready: bool = False
    jobs: deque[_Job] = field(default_factory=deque[_Job])

    def has_room(self, job: _Job, most_ahead: int) -> bool:
        """Whether `job` fits into the pipe without our waiting for the worker.

        One without work reads at once, whatever the size.
        """
        if not self.jobs:
            return self.ready
        num_bytes = sum(len(one.request) for one in (*self.jobs, job))
        return len(self.jobs) < most_ahead and num_bytes < _MOST_BYTES_AHEAD

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


@dataclass
class _Call:
    """Verdicts of one call by the place of their pair, and the places each open job is for."""

    on_done: Callable[[int], None] | None
    verdicts: dict[int, Verdict] = field(default_factory=dict[int, Verdict])
    _places: dict[bytes, list[int]] = field(default_factory=dict[bytes, list[int]])

    def is_new(self, job: _Job, place: int) -> bool:
        """Note that `job` is for `place` too; False where an equal job is open already."""
        places = self._places.setdefault(job.key, [])
        places.append(place)
        return len(places) == 1

    def settle(self, job: _Job, verdict: Verdict) -> None:
        """Enter the verdict at all places the job is for."""
        places = self._places.pop(job.key)
        for place in places:
            self.verdicts[place] = verdict
        if self.on_done is not None:
            self.on_done(len(places))


class AnswerPool:
    """Worker processes that grade answers; a context manager that leaves no process behind.

    Only the part of a response that decides is sent to a worker, and only if the verdict is not
    plain to see; pairs of a gold answer and such a part are graded once, but timeouts and crashes
    are not remembered between calls. One pool may be shared by threads, whose calls then take
    turns.

    Args:
        workers: number of processes.
        deadline_s: seconds one answer may take, from the moment a warm worker receives it.
        reward: name of the reward.
        limits: from which share of failures on the pool stops instead of going on.

    Raises:
        ConfigError: no such reward.
        RewardError: workers do not start.
    """

    def __init__(
        self,
        workers: int = 2,
        deadline_s: float = 5.0,
        *,
        reward: str = "math_verify",
        limits: Limits | None = None,
    ) -> None:
        if workers < 1 or deadline_s <= 0:
            raise RewardError(
                "AnswerPool",
                f"{workers} workers and a deadline of {deadline_s} s grade nothing.",
                "Use at least one worker and a positive deadline.",
            )
        self.deadline_s = deadline_s
        self.reward = reward
        self.rates = StatusRates(limits or Limits())
        self._helpers: Reward = REWARDS.get(reward, "AnswerPool")
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
        _LOGGER.info("graded %s", self.rates.describe())

    def warm_up(self) -> None:
        """Wait until every worker has started; without it the first answers wait.

        Raises:
            RewardError: workers do not start.
        """
        with self._lock:
            while not all(worker.ready for worker in self._workers):
                for worker, heard in self._listen():
                    self._hear(worker, heard, deque())

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
            RewardError: the pool is not entered, its workers do not start, or failures have become
                more frequent than the limits allow.
        """
        with self._lock:
            if not self._workers:
                raise RewardError(
                    "AnswerPool",
                    "the pool has no workers.",
                    "Use it as a context manager: with AnswerPool() as pool: ...",
                )
            found = self._grade_all(pairs, on_done)
            self.rates.add(found)
            self.rates.check(f"reward '{self.reward}'")
            return found

    def _grade_all(
        self, pairs: Sequence[tuple[str, str]], on_done: Callable[[int], None] | None
    ) -> list[Verdict]:
        for worker in list(self._workers):
            if worker.jobs:
                # Left over from a call that was interrupted; its verdict would be taken for ours.
                self._replace(worker)
        call = _Call(on_done)
        todo = enumerate(pairs)
        waiting = deque[_Job]()
        while len(call.verdicts) < len(pairs):
            # Jobs are made while the workers work, and not all before they begin.
            room = _MOST_AHEAD * len(self._workers) - len(waiting)
            for place, pair in islice(todo, max(room, 0)):
                job = self._job(*pair)
                if not call.is_new(job, place):
                    continue
                if (known := job.plain or self._memo.get(job.key)) is not None:
                    call.settle(job, known)
                else:
                    waiting.append(job)
            self._dispatch(waiting)
            for worker, heard in self._listen():
                for job, verdict in self._hear(worker, heard, waiting):
                    self._remember(job, verdict)
                    call.settle(job, verdict)
        return [call.verdicts[place] for place in range(len(pairs))]

    def _dispatch(self, waiting: deque[_Job]) -> None:
        """Give jobs to the workers in turn; one that died while idle is replaced, its job kept.

        One that died at work is left to `_hear`, which knows whose fault it was.
        """
        lost: list[_Worker] = []
        while waiting:
            # The last jobs are handed out one by one: none waits behind a stuck one for nothing.
            ahead = min(max(len(waiting) // len(self._workers), 1), _MOST_AHEAD)
            open_workers = [
                worker
                for worker in self._workers
                if worker not in lost and worker.has_room(waiting[0], ahead)
            ]
            if not open_workers:
                return
            worker = min(open_workers, key=lambda worker: len(worker.jobs))
            try:
                worker.connection.send_bytes(waiting[0].request)
            except OSError:
                if worker.jobs:
                    lost.append(worker)
                else:
                    self._replace(worker)
                continue
            worker.jobs.append(waiting.popleft())
            if len(worker.jobs) == 1:
                self._start_clock(worker)

    def _start_clock(self, worker: _Worker) -> None:
        """The first job of `worker` is at work from now on."""
        worker.started_s = time.monotonic()
        worker.due_s = worker.started_s + self.deadline_s if worker.jobs else _FOREVER

    def _listen(self) -> list[tuple[_Worker, bool]]:
        """Workers that spoke (True) or missed their deadline (False); waits for the first."""
        busy = [worker for worker in self._workers if worker.jobs or not worker.ready]
        if not busy:
            return []
        if all(len(worker.jobs) > 1 for worker in busy):
            # Nobody waits for us: several verdicts are heard at one waking.
            time.sleep(_NAP_S)
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

    def _hear(
        self, worker: _Worker, heard: bool, waiting: deque[_Job]
    ) -> list[tuple[_Job, Verdict]]:
        """Take a worker's messages, or its silence; jobs behind a failed one go back to wait."""
        taken: list[tuple[_Job, Verdict]] = []
        status = Status.TIMEOUT
        if heard:
            try:
                while worker.connection.poll():
                    message = json.loads(worker.connection.recv_bytes())
                    if worker.ready:
                        taken.append((worker.jobs.popleft(), _verdict(message)))
                    worker.ready = True
                    self._failed_starts = 0
                    self._start_clock(worker)
            except (EOFError, OSError):
                status = Status.CRASH
            else:
                return taken
        elapsed_ms = 1000 * (time.monotonic() - worker.started_s)
        if worker.jobs:
            failed = worker.jobs.popleft()
            taken.append((failed, Verdict(0.0, status, elapsed_ms=elapsed_ms)))
            waiting.extendleft(reversed(worker.jobs))
            self._replace(worker)
        else:
            self._replace(worker)
            if not worker.ready:
                self._count_failed_start(worker.process.returncode)
        return taken

    def _start(self) -> _Worker:
        ours, theirs = Pipe(duplex=True)
        suicide_s = math.ceil(2 * self.deadline_s) + 1
        # A reward from outside of the package is registered when its module is imported.
        module = self._helpers.grade.__module__
        path, descriptor = json.dumps(sys.path), str(theirs.fileno())
        arguments = (path, descriptor, module, self.reward, str(suicide_s))
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

    def _replace(self, worker: _Worker) -> None:
        worker.end()
        self._workers[self._workers.index(worker)] = self._start()

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

    def _job(self, gold: str, response: str) -> _Job:
        started_s = time.perf_counter()
        part = self._helpers.decisive(response, gold)
        plain = self._helpers.quick(part, gold)
        if plain is not None:
            plain = replace(plain, elapsed_ms=1000 * (time.perf_counter() - started_s))
        request = json.dumps([gold, part]).encode()
        return _Job(sha256(request).digest(), request, plain)


def _verdict(message: dict[str, str | float | None]) -> Verdict:
    format_score = message["format_score"]
    return Verdict(
        score=float(message["score"] or 0.0),
        status=Status(message["status"]),
        extracted=str(message["extracted"]),
        gold=str(message["gold"]),
        elapsed_ms=float(message["elapsed_ms"] or 0.0),
        format_score=None if format_score is None else float(format_score),
    )
