"""What a launcher is given, and what it promises. Not here: any launcher."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Job:
    """One module to run on several worker processes at once."""

    name: str
    """What it is called in messages."""
    module: str
    """Python module each process runs as its main program."""
    arguments: tuple[str, ...]
    """Command line of the module."""
    processes: int
    """Worker processes on each node."""
    threads_per_process: int
    """CPU threads of each."""
    log_file: Path
    """Where the output of all processes goes, beside the console."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Variables set for the workers, beside ours."""
    nodes: int = 1
    """Machines it runs on."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the nodes of one job meet, and which of them this is."""

    nodes: int
    """How many there are."""
    node: int
    """Index of this one."""
    address: str
    """Host name of the first."""
    port: int
    """Port on it."""
    id: str
    """What tells this attempt of the job from every other."""


class Launcher(Protocol):
    """Something that starts worker processes."""

    def run(self, job: Job) -> None:
        """Run `job` to its end.

        Raises:
            LaunchError: a process did not start or did not end well; the message quotes the log.
        """
        ...
