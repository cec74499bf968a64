"""The headline table: one row per model, each number with its interval.

Not here: where the numbers come from (`run_data.py`) and the page (`page.py`).
"""

from dataclasses import dataclass
from pathlib import Path

from megatron_reason.evaluation.estimators import Estimate
from megatron_reason.report.repeats import gathered
from megatron_reason.report.run_data import RunData, read_run

NO_SPREAD = "[=]"
"""In place of an interval over seeds that would have no width: it would claim certainty."""


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
        """Its interval, `[=]` where all seeds agree; empty where there is no number."""
        estimate = row.metrics.get(self.key)
        if estimate is None:
            return ""
        if row.num_trainings > 1 and estimate.low == estimate.high:
            return NO_SPREAD
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
    num_trainings: int = 1
    """Trainings with different seeds that the numbers are means over."""

    @property
    def size(self) -> str:
        """Problems x samples of each, x trainings where there are several."""
        if not self.num_problems:
            return "-"
        samples, rest = divmod(self.num_samples // self.num_trainings, self.num_problems)
        seeds = f" x {self.num_trainings} seeds" if self.num_trainings > 1 else ""
        # Benchmarks with different numbers of samples together.
        return f"{self.num_problems} x {'several' if rest else samples}{seeds}"


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

    @property
    def note(self) -> str:
        """What the numbers in brackets are."""
        over_seeds = "Rows of several seeds have means over these and 95 % t intervals over them"
        equal = f" {NO_SPREAD} is a number equal with all seeds, which do not show how it varies."
        if not any(NO_SPREAD in cell for row in self.rows for cell in row):
            equal = ""
        if all(row.num_trainings > 1 for row in self.measured if row.metrics):
            return f"{over_seeds}.{equal}"
        if self._has_seeds:
            return f"{over_seeds}; the other rows have 95 % intervals over problems.{equal}"
        return "In brackets: 95 % intervals over problems."

    def markdown(self) -> str:
        """The table as markdown, each number with its 95 % interval, and what that is over."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        return f"{table}\n{self.note}\n" if self._has_seeds else table

    @property
    def _has_seeds(self) -> bool:
        return any(row.num_trainings > 1 for row in self.measured)


def headline_table(run: Path) -> Headline:
    """Headline table of the run in `run`.

    Raises:
        DataError: `run` is no run folder.
    """
    return headline_of(gathered(read_run(run)))


def headline_of(data: RunData) -> Headline:
    """Headline table of a run that was read; models that were not measured have no numbers.

    Behind the benchmarks stands the mean over them of each model that has several.

    A model of another run has no row among problems that only its neighbours were asked.
    """
    found = {(m.problem_set, m.model): m for m in data.measurements}
    measured = {model for _, model in found}
    rows: list[HeadlineRow] = []
    for problem_set in data.problem_sets or ["not measured"]:
        for model in data.models:
            measurement = found.get((problem_set, model))
            if measurement is None and data.num_runs > 1 and model in measured:
                continue
            if measurement is None:
                rows.append(HeadlineRow(problem_set, model, {}))
            else:
                summary = measurement.summary
                sizes = (summary.num_problems, summary.num_samples, measurement.num_trainings)
                rows.append(HeadlineRow(problem_set, model, summary.metrics, *sizes))
    rows += [
        HeadlineRow(
            one.problem_set, one.model, one.summary.metrics, one.summary.num_problems,
            one.summary.num_samples, one.num_trainings,
        )
        for one in data.averages
    ]  # fmt: skip
    return Headline(tuple(rows))
