"""What the launcher's tests run on worker processes: `-m tests.launch.workers WHAT FOLDER`."""

import os
import signal
import sys
import time
from pathlib import Path

from megatron_reason.errors import DataError
from megatron_reason.launch.base import Job
from megatron_reason.launch.local import LocalLauncher

ROOT = Path(__file__).parent.parent.parent


def job(what: str, folder: Path) -> Job:
    return Job(
        name="stage 'test'",
        module="tests.launch.workers",
        arguments=(what, str(folder)),
        processes=2,
        threads_per_process=3,
        log_file=folder / "logs" / "test.log",
        environment={"PYTHONPATH": str(ROOT)},
    )


def main(what: str, folder: Path) -> None:
    rank = os.environ["RANK"]
    if what == "launch":
        LocalLauncher().run(job("sleep", folder))
    elif what == "sleep":
        (folder / f"pid{rank}").write_text(str(os.getpid()))
        time.sleep(600)
    elif what == "environment":
        threads, world = os.environ["OMP_NUM_THREADS"], os.environ["WORLD_SIZE"]
        (folder / f"rank{rank}").write_text(f"{threads} threads, {world} ranks")
        sys.stderr.write(f"hello from rank {rank}\n")
    elif what == "refuse":
        raise DataError("table.parquet", "17 rows are bad.", "Mend the 17 rows.")
    elif what == "refuse_a_sample":
        error = DataError("update 3", "a sequence is too long.", "Shorten it.")
        error.add_note(f"rank {rank}, update 3, sequences a, b")
        raise error
    elif what == "refuse_second" and rank == "1":
        raise DataError("table.parquet", "17 rows are bad.", "Mend the 17 rows.")
    elif what == "kill_second" and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "crash" and rank == "0":
        raise IndexError("an unforeseen accident")
    elif what in ("refuse_second", "kill_second", "crash"):
        time.sleep(600)


if __name__ == "__main__":
    os.environ.setdefault("RANK", "none")
    main(sys.argv[1], Path(sys.argv[2]))
