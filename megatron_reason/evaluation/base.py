"""What a benchmark is: a fixed set of problems in a file, and how it is usually run.

A module of `benchmarks/` registers one. Not here: downloading; the data folder is the caller's.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.registry import Registry
from megatron_reason.schema.records import Message, Problem


@dataclass(frozen=True)
class Columns:
    """Keys of a benchmark's JSON lines."""

    problem: str = "problem"
    answer: str = "answer"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark."""

    name: str
    """Name in configurations; also the problems' `source`."""
    source: str
    """Name of its JSONL file, anywhere below the data folder."""
    count: tuple[int, ...]
    """Numbers of problems it may have; another number means another split."""
    samples_per_prompt: int
    """Samples that published results draw."""
    reward: str = "math_verify"
    """Reward that grades it."""
    columns: Columns = Columns()
    """Keys of its lines."""

    def problems(self, data_folder: Path) -> pl.DataFrame:
        """Rows of `Kind.PROBLEMS`, in the order of the file.

        Raises:
            DataError: no such file or several, a line without problem or answer, the wrong number
                of problems, or the same problem twice.
        """
        path = self._find(data_folder)
        with path.open(encoding="utf-8") as lines:
            problems = [
                self._read(line, f"{path}:{number}")
                for number, line in enumerate(lines, start=1)
                if line.strip()
            ]
        self._check(problems, path)
        return pl.DataFrame(
            [asdict(problem) | {"problem_id": problem.problem_id} for problem in problems]
        )

    def _find(self, data_folder: Path) -> Path:
        found = sorted(data_folder.rglob(self.source))
        if len(found) != 1:
            raise DataError(
                f"benchmark {self.name}",
                f"{len(found)} files called {self.source} lie below {data_folder}.",
                f"Put exactly one there: a line per problem, with the keys "
                f"'{self.columns.problem}' and '{self.columns.answer}'.",
            )
        return found[0]

    def _read(self, line: str, where: str) -> Problem:
        try:
            row = json.loads(line)
            problem, answer = row[self.columns.problem], row[self.columns.answer]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                where,
                f"not a line of this benchmark: {error!r}.",
                f"Give JSON with '{self.columns.problem}' and '{self.columns.answer}'.",
            ) from error
        if not str(problem).strip() or not str(answer).strip():
            raise DataError(where, "an empty problem or answer.", "Fetch the file again.")
        return Problem(
            messages=(Message("user", str(problem)),),
            answer=str(answer),
            source=self.name,
            split="heldout",
        )

    def _check(self, problems: list[Problem], path: Path) -> None:
        if len(problems) not in self.count:
            raise DataError(
                str(path),
                f"{self.name} has {' or '.join(map(str, self.count))} problems; "
                f"this file has {len(problems)}.",
                "Use the test split, whole.",
            )
        repeats = Counter(problem.problem_id for problem in problems)
        if doubled := [name for name, count in repeats.items() if count > 1]:
            raise DataError(
                str(path),
                f"{len(doubled)} problems occur more than once.",
                "Fetch the file again.",
            )


BENCHMARKS: Registry[Benchmark] = Registry("benchmark", "megatron_reason.evaluation.benchmarks")


def benchmark(entry: Benchmark) -> Benchmark:
    """Register `entry` under its name."""
    return BENCHMARKS.register(entry.name)(entry)
