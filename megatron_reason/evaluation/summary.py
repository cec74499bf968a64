"""`summary.json`: the metrics of a table of generations, each with interval and sample count.

Not here: how a number is estimated (`estimators.py`) and how the table came to be (`run.py`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.evaluation.card import read_card
from megatron_reason.evaluation.estimators import (
    Estimate,
    bootstrap,
    maj_at_k,
    mean_share,
    pass_at_k,
)
from megatron_reason.files import read_json, write_json
from megatron_reason.schema.records import Finish, Status
from megatron_reason.schema.tables import Kind, read_table, write_table

SUMMARY = "summary.json"


@dataclass(frozen=True)
class EvalSummary:
    """What an evaluation found."""

    metrics: dict[str, Estimate]
    """pass@k for every k up to n (pass@1 is the mean over all samples, avg@n), maj@k for powers of
    two and n, mean_length (tokens, stop token included), length_correct and length_wrong (the same
    of answers that are right and not right, where there are any), truncated_fraction,
    no_answer_fraction, and mean_entropy (nats) once it was measured."""
    num_problems: int
    """Problems answered."""
    num_samples: int
    """Answers in all."""
    statuses: dict[str, int]
    """Number of answers by status of their verdict."""


def summarise(generations: pl.DataFrame, *, seed: int) -> EvalSummary:
    """Summary of a table of generations in which every problem has equally many samples.

    Args:
        generations: rows of `Kind.GENERATIONS`.
        seed: of the bootstrap and of majority votes.

    Raises:
        DataError: no rows, or problems with unequally many samples.
    """
    groups = _grouped(generations)
    sizes = {len(group.is_right) for group in groups}
    if len(sizes) != 1:
        raise DataError(
            "summary",
            f"problems have {sorted(sizes) or 'no'} samples; they need equally many.",
            "Evaluate into an empty folder.",
        )
    n = sizes.pop()
    metrics = {
        name: mean_share(
            [share(group) for group in groups], seed=seed, num_samples=len(generations)
        )
        for name, share in _shares(n, seed).items()
    }
    means: dict[str, Callable[[_Group], list[float]]] = {
        "mean_length": lambda group: group.lengths(right=True) + group.lengths(right=False),
        "length_correct": lambda group: group.lengths(right=True),
        "length_wrong": lambda group: group.lengths(right=False),
        "mean_entropy": lambda group: group.entropies,
    }
    for name, values in means.items():
        parts = [values(group) for group in groups]
        counts = [len(part) for part in parts]
        if sum(counts):
            sums = [math.fsum(part) for part in parts]
            metrics[name] = bootstrap(sums, counts, seed=seed, num_samples=sum(counts))
    return EvalSummary(
        metrics=metrics,
        num_problems=len(groups),
        num_samples=len(generations),
        statuses=dict(generations["status"].value_counts(sort=True).iter_rows()),
    )


def fill_entropy(output: Path, values: Mapping[tuple[str, int], float]) -> EvalSummary:
    """Enter measured entropies into a finished evaluation and add `mean_entropy` to its summary.

    Args:
        output: folder of the evaluation.
        values: mean entropy in nats by (problem id, sample index); samples not named keep theirs.

    Raises:
        DataError: a key that the evaluation does not have.
    """
    frame = read_table(output, Kind.GENERATIONS)
    keys = list(zip(frame["problem_id"], frame["sample_index"], strict=True))
    if unknown := sorted(values.keys() - set(keys)):
        raise DataError(
            str(output),
            f"{len(unknown)} entropies belong to no answer here, for example {unknown[0]}.",
            "Measure them on this folder's generations.parquet.",
        )
    filled = [values.get(key, old) for key, old in zip(keys, frame["mean_entropy"], strict=True)]
    frame = frame.with_columns(mean_entropy=pl.Series(filled, dtype=pl.Float64))
    write_table(output, Kind.GENERATIONS, frame)
    summary = summarise(frame, seed=read_card(output).sampling.seed)
    write_summary(output, summary)
    return summary


def write_summary(folder: Path, summary: EvalSummary) -> None:
    """Write `summary` into `folder`."""
    write_json(folder / SUMMARY, asdict(summary))


def read_summary(folder: Path) -> EvalSummary:
    """Summary of the evaluation in `folder`."""
    stored = read_json(folder / SUMMARY)
    metrics = {name: Estimate(**values) for name, values in stored.pop("metrics").items()}
    return EvalSummary(metrics=metrics, **stored)


def shown(metrics: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Metrics without the pass@k of the many k between powers of two."""
    ks = {int(name.removeprefix("pass@")) for name in metrics if name.startswith("pass@")}
    kept = {f"pass@{k}" for k in powers_of_two(max(ks, default=1))}
    return {
        name: estimate
        for name, estimate in metrics.items()
        if not name.startswith("pass@") or name in kept
    }


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... up to `n`, and `n` itself."""
    return sorted({*(1 << i for i in range(n.bit_length())), n})


@dataclass(frozen=True)
class _Group:
    """The samples of one problem, in order."""

    is_right: list[bool]
    extracted: list[str]
    num_tokens: list[int]
    finish: list[str]
    status: list[str]
    mean_entropy: list[float | None]

    def lengths(self, *, right: bool) -> list[float]:
        """Tokens of the answers that are right, or of the others."""
        both = zip(self.num_tokens, self.is_right, strict=True)
        return [float(count) for count, is_right in both if is_right == right]

    @property
    def entropies(self) -> list[float]:
        """Those that were measured."""
        return [value for value in self.mean_entropy if value is not None]


def _grouped(generations: pl.DataFrame) -> list[_Group]:
    columns = ("extracted", "num_tokens", "finish", "status", "mean_entropy")
    grouped = (
        generations.sort("problem_id", "sample_index")
        .group_by("problem_id", maintain_order=True)
        .agg(pl.col(*columns))
        .select(columns)
    )
    return [_Group([status == Status.OK for status in row[3]], *row) for row in grouped.iter_rows()]


def _shares(n: int, seed: int) -> dict[str, Callable[[_Group], float]]:
    """Metrics that are the mean over problems of a share, in [0, 1], of one problem's samples."""

    def passes(k: int) -> Callable[[_Group], float]:
        return lambda group: pass_at_k(n, sum(group.is_right), k)

    def majority(k: int) -> Callable[[_Group], float]:
        return lambda group: maj_at_k(group.extracted, group.is_right, k, seed=seed)

    return {
        **{f"pass@{k}": passes(k) for k in range(1, n + 1)},
        **{f"maj@{k}": majority(k) for k in powers_of_two(n) if k > 2 or k == n},
        "truncated_fraction": lambda group: group.finish.count(Finish.LENGTH) / n,
        "no_answer_fraction": lambda group: group.status.count(Status.NO_ANSWER) / n,
    }
