"""The table that answers "did it help?": one row a model, each number with its interval.

The same rows are printed in a terminal, written as Markdown and set in the report. Not here: how
the numbers were estimated (`evaluation/summary.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_reason.evaluation.estimators import Estimate
from megatron_reason.report.reading import RunView

_ABSENT = "–"
_LABELS = {
    "mean_entropy": "entropy, nats",
    "mean_length": "length, tokens",
    "truncated_fraction": "truncated",
    "no_answer_fraction": "no answer",
}


@dataclass(frozen=True)
class Cell:
    """One number as text."""

    value: str
    interval: str
    """`low to high`, or empty."""
    note: str = ""
    """Number of answers behind it, where they are not those of the row."""

    def __str__(self) -> str:
        if not self.interval:
            return self.value
        return f"{self.value} [{self.interval}]{f' ({self.note})' if self.note else ''}"


@dataclass(frozen=True)
class HeadlineRow:
    """One model on one set of problems."""

    problem_set: str
    variant: str
    estimates: dict[str, Estimate]
    """By metric; empty if the model was not evaluated."""
    num_problems: int
    num_samples: int

    def cell(self, metric: str) -> Cell:
        """The metric as text, fractions in percent."""
        estimate = self.estimates.get(metric)
        if estimate is None:
            return Cell(_ABSENT, "")
        note = "" if estimate.n == self.num_samples else f"n = {estimate.n}"
        low, high = (_number(metric, bound, unit=False) for bound in (estimate.low, estimate.high))
        return Cell(_number(metric, estimate.value), f"{low} to {high}", note)


@dataclass(frozen=True)
class Headline:
    """All rows; `str` of it is a table for a terminal."""

    rows: Sequence[HeadlineRow]

    @property
    def problem_sets(self) -> list[str]:
        """Sets of problems, in order."""
        return list(dict.fromkeys(row.problem_set for row in self.rows))

    def of(self, problem_set: str) -> "Headline":
        """Only the rows of one set."""
        return Headline([row for row in self.rows if row.problem_set == problem_set])

    @property
    def metrics(self) -> list[str]:
        """Metrics shown: pass@1, pass@k for the largest k that all rows have, and the rest."""
        measured = [set(row.estimates) for row in self.rows if row.estimates]
        common: set[str] = set.intersection(*measured) if measured else set()
        ks = sorted(int(name.removeprefix("pass@")) for name in common if name.startswith("pass@"))
        passes = dict.fromkeys(["pass@1", *(f"pass@{k}" for k in ks[-1:])])
        return [*passes, *_LABELS]

    @property
    def columns(self) -> list[str]:
        """Headings of `cells`."""
        labels = [_LABELS.get(metric, metric) for metric in self.metrics]
        return ["model", *labels, "problems", "answers"]

    def cells(self) -> list[list[str]]:
        """Texts of the table, row by row."""
        metrics = self.metrics
        return [
            [
                row.variant,
                *(str(row.cell(metric)) for metric in metrics),
                str(row.num_problems or _ABSENT),
                str(row.num_samples or _ABSENT),
            ]
            for row in self.rows
        ]

    def markdown(self) -> str:
        """The table in Markdown."""
        columns = self.columns
        ruler = ["---", *["---:"] * (len(columns) - 1)]
        return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ruler, *self.cells()])

    def __str__(self) -> str:
        return "\n\n".join(
            f"{name} (95 % intervals in brackets)\n{_aligned(part.columns, part.cells())}"
            for name in self.problem_sets
            for part in [self.of(name)]
        )


def headline(run: RunView) -> Headline:
    """Rows of every model of the plan on every set of problems; unmeasured ones are empty."""
    evaluated = {stage.variant for stage in run.stages if stage.kind == "eval"}
    found = {(e.problem_set, e.variant): e.summary for e in run.evaluations}
    rows: list[HeadlineRow] = []
    for problem_set in run.problem_sets:
        for variant in run.variants:
            if variant not in evaluated:
                continue
            summary = found.get((problem_set, variant))
            if summary is None:
                rows.append(HeadlineRow(problem_set, variant, {}, 0, 0))
            else:
                sizes = (summary.num_problems, summary.num_samples)
                rows.append(HeadlineRow(problem_set, variant, summary.metrics, *sizes))
    return Headline(rows)


def _number(metric: str, value: float, *, unit: bool = True) -> str:
    if metric.startswith("pass@") or metric.endswith("_fraction"):
        return f"{100 * value:.1f}{' %' if unit else ''}"
    return f"{value:.0f}" if metric == "mean_length" else f"{value:.3f}"


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest text, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [
        "  ".join(
            text.rjust(width) if index else text.ljust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [columns, *rows]
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
