"""What a benchmark is: a fixed set of problems in a file, and how it is graded.

A module of `benchmarks/` registers one; a path to a file is one too. Not here: downloading; the
data folder is the caller's. How often a paper asks each problem: `suites/`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.evaluation.choices import read_choice
from megatron_reason.logs import get_logger
from megatron_reason.registry import Registry
from megatron_reason.schema.addresses import files_at, is_hub_address, open_binary
from megatron_reason.schema.records import Message, Problem

_LOG = get_logger(__name__)
FILES = (".jsonl", ".parquet")
"""How the names of benchmarks end that are paths of files."""


@dataclass(frozen=True)
class Columns:
    """Keys of a benchmark's rows; where one of them is absent, the usual other names are tried."""

    problem: str = "problem"
    answer: str = "answer"


_OTHER_NAMES = {"problem": ("question", "prompt"), "answer": ("answerKey", "target")}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark."""

    name: str
    """Name in configurations; also the problems' `source`."""
    source: str
    """Name of its file anywhere below the data folder, or a path to it, or an `hf://` address."""
    count: tuple[int, ...] = ()
    """Numbers of problems it may have; another number means another split. Empty: any number."""
    reward: str = "math_verify"
    """Reward that grades it."""
    columns: Columns = Columns()
    """Keys of its rows."""
    is_choice: bool = False
    """Multiple choice: rows have options, which are put in a seeded order."""
    repeats: int = 0
    """Rows of the official file that repeat earlier ones; each is asked once."""

    def problems(self, data_folder: Path, *, choice_seed: int | None = None) -> pl.DataFrame:
        """Rows of `Kind.PROBLEMS`, in the order of the file.

        Args:
            data_folder: folder below which the file lies, unless `source` is a path or an address.
            choice_seed: of the order of options; None leaves them as they are.

        Raises:
            DataError: no such file or several, a row without problem or answer, the wrong number
                of problems, or more repeated problems than the benchmark is known to have.
        """
        path = self._find(data_folder)
        problems = [self._read(row, where, choice_seed) for where, row in _rows(path)]
        self._check(problems, path)
        distinct = {problem.problem_id: problem for problem in problems}
        return pl.DataFrame(
            [asdict(problem) | {"problem_id": name} for name, problem in distinct.items()]
        )

    def _find(self, data_folder: Path) -> str:
        if is_hub_address(self.source):
            return _only(files_at(self.source, FILES), self.source)
        if len(PurePath(self.source).parts) > 1 or Path(self.source).is_file():
            found = [path for path in [Path(self.source)] if path.is_file()]
        else:
            found = sorted(data_folder.rglob(self.source))
        if len(found) != 1:
            raise DataError(
                f"benchmark {self.name}",
                f"{len(found)} files called {self.source} lie below {data_folder}.",
                f"Put exactly one there: a row per problem, with the keys "
                f"'{self.columns.problem}' and '{self.columns.answer}'; or name another folder "
                "with --set eval.benchmark_folder=DIR.",
            )
        return str(found[0])

    def _read(self, row: object, where: str, choice_seed: int | None) -> Problem:
        try:
            if not isinstance(row, Mapping):
                raise TypeError(f"{type(row).__name__} instead of an object")
            problem = str(self._value(row, "problem", self.columns.problem))
            value = self._value(row, "answer", self.columns.answer)
            answer = str(value)
            if self.is_choice:
                choice = read_choice(problem, value, row)
                if choice_seed is not None:
                    choice = choice.shuffled(choice_seed)
                problem, answer = choice.text, choice.letter
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                where,
                f"not a row of this benchmark: {error!r}.",
                f"Give '{self.columns.problem}' and '{self.columns.answer}'"
                + (", and options as a list or as lines 'A) ...'." if self.is_choice else "."),
            ) from error
        if not problem.strip() or not answer.strip():
            raise DataError(where, "an empty problem or answer.", "Fetch the file again.")
        return Problem(
            messages=(Message("user", problem),),
            answer=answer,
            source=self.name,
            family=_family(row),
            split="heldout",
        )

    def _value(self, row: Mapping[str, Any], what: str, key: str) -> str | float:
        names = [name for name in (key, *_OTHER_NAMES[what]) if name in row]
        value = row[names[0] if names else key]
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise TypeError(f"{what} is {type(value).__name__}, not text or a number")
        return value

    def _check(self, problems: list[Problem], path: str) -> None:
        if not problems:
            raise DataError(path, f"{self.name} is empty.", "Fetch the file again.")
        if self.count and len(problems) not in self.count:
            raise DataError(
                path,
                f"{self.name} has {' or '.join(map(str, self.count))} problems; "
                f"this file has {len(problems)}.",
                "Use the test split, whole.",
            )
        counts = Counter(problem.problem_id for problem in problems)
        repeats = counts.total() - len(counts)
        if repeats > self.repeats:
            raise DataError(
                path,
                f"{repeats} problems occur more than once; {self.name} has {self.repeats} such.",
                "Fetch the file again.",
            )
        if repeats:
            _LOG.info("%s repeats %d problems; each is asked once", self.name, repeats)


BENCHMARKS: Registry[Benchmark] = Registry("benchmark", "megatron_reason.evaluation.benchmarks")


def benchmark(entry: Benchmark) -> Benchmark:
    """Register `entry` under its name."""
    return BENCHMARKS.register(entry.name)(entry)


def find_benchmark(name: str, where: str = "eval.benchmarks") -> Benchmark:
    """The benchmark called `name`, or the one that a .jsonl or .parquet file of that path holds.

    Raises:
        ConfigError: no benchmark of that name; the message offers the nearest.
    """
    if not name.endswith(FILES):
        return BENCHMARKS.get(name, where)
    return Benchmark(name=PurePath(name).stem, source=name)


def _rows(path: str) -> Iterator[tuple[str, object]]:
    """Rows with their places."""
    if not path.endswith(".jsonl"):
        try:
            with open_binary(path) as stream:
                rows = pl.read_parquet(stream).to_dicts()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(path, f"this cannot be read: {error}.", "Fetch it again.") from error
        yield from ((f"{path} row {number}", row) for number, row in enumerate(rows, start=1))
        return
    with open_binary(path) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", _parsed(line.decode())
        except UnicodeDecodeError as error:
            raise DataError(path, f"this is no UTF-8 text: {error}.", "Fetch it again.") from error


def _only(files: list[str], address: str) -> str:
    if len(files) > 1:
        raise DataError(
            address,
            f"it stands for {len(files)} files, {files[0]} and {files[1]} among them.",
            "A benchmark is one file: give its address without *.",
        )
    return files[0]


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return line[:40]


def _family(row: object) -> str:
    """Subject of a problem, where its row tells one."""
    meta = row.get("meta") if isinstance(row, Mapping) else None
    found = meta.get("subject") if isinstance(meta, Mapping) else None
    return str(found or "")
