"""`summary.json`: the metrics of a table of generations, each with interval and sample count.

Not here: how a number is estimated (`estimators.py`) and how the table came to be (`run.py`).
"""

from collections.abc import Callable, Mapping, Sequence
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
    groups = [
        group.sort("sample_index")
        for _, group in generations.sort("problem_id").group_by("problem_id", maintain_order=True)
    ]
    sizes = {len(group) for group in groups}
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
    metrics["mean_length"] = _length(groups, seed)
    is_right = pl.col("status") == Status.OK
    for name, wanted in (("length_correct", is_right), ("length_wrong", ~is_right)):
        if len(generations.filter(wanted)):
            metrics[name] = _length([group.filter(wanted) for group in groups], seed)
    if generations["mean_entropy"].count():
        metrics["mean_entropy"] = _entropy(groups, seed)
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


def _shares(n: int, seed: int) -> dict[str, Callable[[pl.DataFrame], float]]:
    """Metrics that are the mean over problems of a share, in [0, 1], of one problem's samples."""

    def passes(k: int) -> Callable[[pl.DataFrame], float]:
        return lambda group: pass_at_k(n, _num_correct(group), k)

    def majority(k: int) -> Callable[[pl.DataFrame], float]:
        return lambda group: maj_at_k(
            group["extracted"].to_list(), (group["status"] == Status.OK).to_list(), k, seed=seed
        )

    return {
        **{f"pass@{k}": passes(k) for k in range(1, n + 1)},
        **{f"maj@{k}": majority(k) for k in powers_of_two(n) if k > 2 or k == n},
        "truncated_fraction": lambda group: _share(group["finish"] == Finish.LENGTH),
        "no_answer_fraction": lambda group: _share(group["status"] == Status.NO_ANSWER),
    }


def _num_correct(group: pl.DataFrame) -> int:
    return int((group["status"] == Status.OK).sum())


def _share(is_so: pl.Series) -> float:
    return int(is_so.sum()) / len(is_so)


def _length(groups: Sequence[pl.DataFrame], seed: int) -> Estimate:
    """Mean over answers, of which one group may have more than another."""
    sums = [float(group["num_tokens"].sum()) for group in groups]
    counts = [len(group) for group in groups]
    return bootstrap(sums, counts, seed=seed, num_samples=sum(counts))


def _entropy(groups: Sequence[pl.DataFrame], seed: int) -> Estimate:
    """Mean over the measured answers, which may be more of one problem than of another."""
    sums = [float(group["mean_entropy"].sum()) for group in groups]
    counts = [group["mean_entropy"].count() for group in groups]
    return bootstrap(sums, counts, seed=seed, num_samples=sum(counts))
