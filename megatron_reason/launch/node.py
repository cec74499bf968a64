"""One node's part of a job: `srun python -m megatron_reason.launch.node STEP.json`.

Starts torchrun as on a single machine, with a meeting point, and says on its output how it went.
srun forwards SIGUSR1; the workers save and leave. Not here: who reads what it says (`slurm.py`).
"""

import json
import os
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path

from megatron_reason import __version__
from megatron_reason.errors import LaunchError, StoppedError
from megatron_reason.files import read_json, write_text
from megatron_reason.launch.base import Job, Rendezvous
from megatron_reason.launch.local import LocalLauncher, says_peer_lost

REPORT = "mreason-node"
MODULE = "megatron_reason.launch.node"


def write_step(path: Path, job: Job, rendezvous: Rendezvous) -> None:
    """Write what `main` reads; `rendezvous.node` is each node's own to know."""
    step = {"job": asdict(job), "rendezvous": asdict(rendezvous)}
    write_text(path, json.dumps(step, indent=2, default=str) + "\n")


def read_step(path: Path, node: int) -> tuple[Job, Rendezvous]:
    """Job and meeting point of node number `node`; each node has a log of its own."""
    step = read_json(path)
    job = step["job"]
    job |= {
        "arguments": tuple(job["arguments"]),
        "log_file": node_log(Path(job["log_file"]), node),
    }
    return Job(**job), Rendezvous(**step["rendezvous"] | {"node": node})


def node_log(log_file: Path, node: int) -> Path:
    """Where node number `node` keeps its part of the log `log_file`."""
    return log_file.with_name(f"{log_file.stem}.node{node}.log")


def error_file(log_file: Path) -> Path:
    """Where a node leaves the reason why it failed, beside its log."""
    return log_file.with_suffix(".error")


def main() -> int:
    """Run this node's workers; the exit code is 0 if they ended well or were asked to stop."""
    node = int(os.environ.get("SLURM_NODEID", "0"))
    job, rendezvous = read_step(Path(sys.argv[1]), node)
    error_file(job.log_file).unlink(missing_ok=True)
    _report(f"started {time.time():.1f} {__version__} {socket.gethostname()}")
    try:
        LocalLauncher(rendezvous).run(job)
    except StoppedError:
        _report("stopped")
        return 0
    except LaunchError as error:
        # srun cuts long lines and mixes the nodes'; the reason goes by file, the verdict by line.
        write_text(error_file(job.log_file), error.what)
        _report("lost" if says_peer_lost(error.what) else "failed")
        return 1
    _report("finished")
    return 0


def _report(text: str) -> None:
    # A line of its own even where a progress bar has left the cursor in the middle of one.
    sys.stderr.write(f"\n{REPORT} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
