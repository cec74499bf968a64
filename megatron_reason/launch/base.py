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
    """Number of worker processes."""
    threads_per_process: int
    """CPU threads of each."""
    log_file: Path
    """Where the output of all processes goes, beside the console."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Variables set for the workers, beside ours."""


class Launcher(Protocol):
    """Something that starts worker processes."""

    def run(self, job: Job) -> None:
        """Run `job` to its end.

        Raises:
            LaunchError: a process did not start or did not end well; the message quotes the log.
        """
        ...
