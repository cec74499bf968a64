"""The headline table: one row per model, each number with its interval.

Not here: where the numbers come from (`run_data.py`) and the page (`page.py`).
"""

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
        return f"[{self._text(estimate.low)}, {self._text(estimate.high)}]"

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
class Headline:
    """The headline table of a run: numbers in `measured`, their texts in `header` and `rows`."""

    measured: tuple[HeadlineRow, ...]

    @property
    def problem_sets(self) -> list[str]:
        """What the models were measured on, in order."""
        return list(dict.fromkeys(row.problem_set for row in self.measured))

    def on(self, problem_set: str) -> "Headline":
        """The rows of one set of problems."""
        return Headline(tuple(row for row in self.measured if row.problem_set == problem_set))

    @property
    def columns(self) -> list[Column]:
        """pass@1, pass@k for the largest k of all rows, entropy, length, truncation."""
        names = {name for row in self.measured for name in row.metrics if name.startswith("pass@")}
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
        """Titles of `rows`."""
        return [
            *(["measured on"] if len(self.problem_sets) > 1 else []),
            "model",
            *(column.title for column in self.columns),
            "problems x samples",
        ]

    @property
    def rows(self) -> list[list[str]]:
        """One row per model and set of problems, each number followed by its 95 % interval."""
        columns = self.columns
        return [
            [
                *([row.problem_set] if len(self.problem_sets) > 1 else []),
                row.model,
                *(f"{column.value(row)} {column.interval(row)}".strip() for column in columns),
                row.size,
            ]
            for row in self.measured
        ]

    @property
    def entropy_counts(self) -> list[int]:
        """Numbers of answers that entropy was measured on, without repeats."""
        found = (row.metrics.get("mean_entropy") for row in self.measured)
        return sorted({estimate.n for estimate in found if estimate is not None})

    def markdown(self) -> str:
        """The table as markdown, each number with its 95 % interval."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def headline_table(run: Path) -> Headline:
    """Headline table of the run in `run`.

    Raises:
        DataError: `run` is no run folder.
    """
    return headline_of(read_run(run))


def headline_of(data: RunData) -> Headline:
    """Headline table of a run that was read; models that were not measured have no numbers.

    A model of another run has no row among problems that only its neighbours were asked.
    """
    found = {(m.problem_set, m.model): m.summary for m in data.measurements}
    measured = {model for _, model in found}
    rows: list[HeadlineRow] = []
    for problem_set in data.problem_sets or ["not measured"]:
        for model in data.models:
            summary = found.get((problem_set, model))
            if summary is None and data.num_runs > 1 and model in measured:
                continue
            if summary is None:
                rows.append(HeadlineRow(problem_set, model, {}))
            else:
                sizes = (summary.num_problems, summary.num_samples)
                rows.append(HeadlineRow(problem_set, model, summary.metrics, *sizes))
    return Headline(tuple(rows))
