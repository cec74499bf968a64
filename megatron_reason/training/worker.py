"""What torchrun starts for a job that needs Megatron: `-m megatron_reason.training.worker JOB`.

Every rank reads the same job file. Imports of Megatron stand inside `main`, because on a CPU they
must come after `platform.cpu()` was entered. Not here: how workers are started (`launch`).
"""

import argparse
import ctypes
import errno
import os
import signal
import sys
import warnings
from pathlib import Path

from megatron_reason import platform
from megatron_reason.errors import StoppedError, of_system
from megatron_reason.logs import get_logger, setup_logging


def main() -> None:
    """Run the job named on the command line."""
    parser = argparse.ArgumentParser(description="Run one job on this rank.")
    parser.add_argument("job", type=Path, help="JSON file written by the launcher")
    job_file: Path = parser.parse_args().job
    _die_with_launcher()
    setup_logging(rank=int(os.environ.get("RANK", "0")))
    # Every rank would repeat what the one line at the start says of missing accelerators.
    warnings.filterwarnings("ignore", module=r"megatron\.|torch\.distributed")
    with platform.cpu():
        from megatron_reason.training.duties import run_job
        from megatron_reason.training.jobs import read_job

        try:
            run_job(read_job(job_file))
        except StoppedError as wish:
            # Started by `-m`, this module is called __main__.
            get_logger("megatron_reason.training.worker").info("%s", wish)
            sys.exit(wish.exit_code)
        except OSError as error:
            # Without a file it may be a peer that went away, whose own words say more.
            if error.filename is None and error.errno != errno.ENOSPC:
                raise
            raise of_system(error) from error


def _die_with_launcher() -> None:
    """Have the kernel kill this rank when torchrun dies, even by kill -9.

    An orphan would go on writing checkpoints into a folder that the restarted job also writes.
    torchrun starts ranks from its main thread, which is what PR_SET_PDEATHSIG watches.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    main()
