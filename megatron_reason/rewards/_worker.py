"""What a grading process runs: one verdict per message, until its pipe closes.

A worker is a fresh interpreter with no state of its parent's: no CUDA context, no process groups,
no `__main__`. It bounds its own memory, and asks the kernel to end it should it get stuck after its
parent has died. Not here: deadlines and replacement (`pool.py`).
"""

import contextlib
import gc
import importlib
import json
import resource
import signal
import time
from dataclasses import asdict, replace
from multiprocessing.connection import Connection

from megatron_reason.rewards.base import REWARDS

_MEMORY_BYTES = 4 << 30
_OBJECTS_PER_COLLECTION = 100_000
"""Python's default is 700, and sympy makes many times that for one answer: a tenth of its time."""


def serve(descriptor: int, module: str, reward_name: str, suicide_s: int) -> None:
    """Answer requests on a pipe with the reward `reward_name`.

    Args:
        descriptor: file descriptor of this end of a duplex pipe.
        module: module that registers the reward.
        reward_name: which reward to apply.
        suicide_s: seconds after which a stuck answer ends the process, parent or not.
    """
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What asks a job to save and leave is our caller's, who may need verdicts until it has saved.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # The default action of the alarm is to end the process, whatever Python is doing.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    importlib.import_module(module)
    grade = REWARDS.get(reward_name).grade
    gc.freeze()
    gc.set_threshold(_OBJECTS_PER_COLLECTION)
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, BrokenPipeError):
        connection.send_bytes(b"{}")
        while True:
            gold, response = json.loads(connection.recv_bytes())
            signal.alarm(suicide_s)
            started_s = time.perf_counter()
            found = grade(response, gold)
            signal.alarm(0)
            elapsed_ms = 1000 * (time.perf_counter() - started_s)
            connection.send_bytes(
                json.dumps(asdict(replace(found, elapsed_ms=elapsed_ms))).encode()
            )
