"""The headline table: one row per model, each number with its interval.

Not here: where the numbers come from (`run_data.py`) and the page (`page.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_reason.evaluation.estimators import Estimate
from megatron_reason.report.run_data import RunData, read_run


@dataclass(frozen=True)
class Column:
    """One metric of the table."""

    key: str
    """Name in `EvalSummary.metrics`."""
    title: str
    scale: float = 1.0
    """Factor between the stored and the shown number."""
    digits: int = 1

    def value(self, row: "HeadlineRow") -> str:
        """The number, or a dash."""
        estimate = row.metrics.get(self.key)
        return "-" if estimate is None else self._text(estimate.value)

    def interval(self, row: "HeadlineRow") -> str:
        """Its interval; empty where there is no number."""
        estimate = row.metrics.get(self.key)
        if estimate is None:
            return ""
        return f"{self._text(estimate.low)}..{self._text(estimate.high)}"

    def _text(self, number: float) -> str:
        return f"{number * self.scale:.{self.digits}f}"


@dataclass(frozen=True)
class HeadlineRow:
    """What one model did on one set of problems; without numbers if it was not measured."""

    problem_set: str
    model: str
    metrics: dict[str, Estimate]
    num_problems: int = 0
    num_samples: int = 0

    @property
    def size(self) -> str:
        """Problems x samples of each."""
        if not self.num_problems:
            return "-"
        return f"{self.num_problems} x {self.num_samples // self.num_problems}"


@dataclass(frozen=True)
class HeadlineTable:
    """All models on one set of problems; `str` of it is for a terminal."""

    problem_set: str
    rows: tuple[HeadlineRow, ...]

    @property
    def columns(self) -> list[Column]:
        """pass@1, pass@k for the largest k of all rows, entropy, length, truncation."""
        names = {name for row in self.rows for name in row.metrics if name.startswith("pass@")}
        largest = max((int(name.removeprefix("pass@")) for name in names), default=1)
        passes = [Column(f"pass@{k}", f"pass@{k} (%)", 100) for k in sorted({1, largest})]
        return [
            *passes,
            Column("mean_entropy", "entropy (nats)", digits=3),
            Column("mean_length", "length (tokens)"),
            Column("truncated_fraction", "truncated (%)", 100),
        ]

    @property
    def header(self) -> list[str]:
        """Titles of all columns."""
        return ["model", *(column.title for column in self.columns), "problems x samples"]

    @property
    def entropy_counts(self) -> list[int]:
        """Numbers of answers that entropy was measured on, without repeats."""
        found = (row.metrics.get("mean_entropy") for row in self.rows)
        return sorted({estimate.n for estimate in found if estimate is not None})

    def markdown(self) -> str:
        """The table as markdown, under a heading."""
        lines = [self.header, ["---"] * len(self.header), *self._one_line_rows()]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {self.problem_set}\n\n{body}\n"

    def __str__(self) -> str:
        """Two lines a model: its numbers, and below them their 95 % intervals."""
        lines = [self.header, *self._two_line_rows()]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        head, *body = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        rule = "-" * (sum(widths) + 2 * len(widths) - 2)
        title = f"{self.problem_set} (below each number, its 95 % interval)"
        return "\n".join([title, rule, head, rule, *body, rule])

    def _one_line_rows(self) -> Iterator[list[str]]:
        for row in self.rows:
            cells = [f"{c.value(row)} [{c.interval(row)}]" for c in self.columns]
            yield [row.model, *(cell.removesuffix(" []") for cell in cells), row.size]

    def _two_line_rows(self) -> Iterator[list[str]]:
        for row in self.rows:
            yield [row.model, *(column.value(row) for column in self.columns), row.size]
            if row.metrics:
                yield ["", *(column.interval(row) for column in self.columns), ""]


@dataclass(frozen=True)
class Headline:
    """The headline tables of a run, one per set of problems; `str` of it is for a terminal."""

    tables: tuple[HeadlineTable, ...]

    @property
    def rows(self) -> list[HeadlineRow]:
        """All rows of all tables."""
        return [row for table in self.tables for row in table.rows]

    def markdown(self) -> str:
        """All tables as markdown."""
        return "\n".join(table.markdown() for table in self.tables) or "Nothing was evaluated.\n"

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables)) or "Nothing was evaluated."


def headline_table(run: Path) -> Headline:
    """Headline tables of the run in `run`.

    Raises:
        DataError: `run` is no run folder.
    """
    return headline_of(read_run(run))


def headline_of(data: RunData) -> Headline:
    """Headline tables of a run that was read; models that were not measured have dashes."""
    return Headline(tuple(_table(data, name) for name in data.problem_sets))


def _table(data: RunData, problem_set: str) -> HeadlineTable:
    found = {m.model: m.summary for m in data.on(problem_set)}
    rows = [
        HeadlineRow(problem_set, model, summary.metrics, summary.num_problems, summary.num_samples)
        if (summary := found.get(model))
        else HeadlineRow(problem_set, model, {})
        for model in data.models
    ]
    return HeadlineTable(problem_set, tuple(rows))
