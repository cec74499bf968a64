"""Two evaluations side by side: whether they may be compared, and paired tests if so.

Not here: the tests (`paired.py`), tables in the terminal (`cli`).
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.evaluation.average import METRIC, average_name, average_test
from megatron_reason.evaluation.card import CARD, EvalCard, check_belongs, comparable, read_card
from megatron_reason.evaluation.estimators import maj_at_k, pass_at_k
from megatron_reason.evaluation.paired import PairedTest, paired_test
from megatron_reason.evaluation.regrade import evaluation_folders
from megatron_reason.registry import suggest
from megatron_reason.schema.records import Finish, Status
from megatron_reason.schema.tables import Kind, read_table

_COLUMNS = (
    "problem_id", "sample_index", "status", "score", "extracted", "num_tokens", "finish",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """One finished evaluation of one model on one set of problems."""

    folder: Path
    card: EvalCard
    answers: pl.DataFrame
    """The generations without their texts, sorted by problem and sample."""

    @property
    def samples_per_problem(self) -> int:
        """Samples of each problem."""
        return int(self.answers["problem_id"].value_counts()["count"].to_list()[0])


@dataclass(frozen=True)
class Comparison:
    """What two evaluations of one set of problems say of two models."""

    problem_set: str
    tests: dict[str, PairedTest]
    """By metric, b - a."""
    differences: list[str]
    """Why the numbers should not be compared; empty if they may."""


def read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in `folder`.

    Raises:
        DataError: no card or no answers, or those of another evaluation, or problems with
            unequally many samples.
    """
    card = read_card(folder)
    answers = read_table(folder, Kind.GENERATIONS, columns=_COLUMNS)
    check_belongs(folder, card, answers["problem_id"])
    answers = answers.sort("problem_id", "sample_index")
    sizes = answers["problem_id"].value_counts()["count"].unique().to_list()
    if len(sizes) != 1:
        raise DataError(
            str(folder),
            f"problems have {sorted(sizes) or 'no'} samples; they need equally many.",
            "Finish the evaluation: run the same command again.",
        )
    return Evaluation(folder, card, answers)


def find_evaluations(text: str) -> dict[str, Path]:
    """Folders of evaluations by set of problems.

    Args:
        text: folder of one evaluation, or of several; or `RUN:MODEL`, the evaluation of one model
            in a run's folder.

    Raises:
        DataError: there is no such folder or model, or nothing in it.
    """
    name, colon, model = text.rpartition(":")
    folder = Path(text)
    if colon and not folder.exists():
        run = Path(name)
        by_model = {p.name.partition("-eval-")[2]: p for p in run.glob("*-eval-*") if p.is_dir()}
        if model not in by_model:
            raise DataError(
                text,
                f"{run} holds no evaluation of '{model}'.",
                suggest(model, by_model) if by_model else "Give a run's folder before the colon.",
            )
        folder = by_model[model]
    # What an evaluation is called must not depend on how its own folder is called.
    return {
        "" if path == folder else name: path for name, path in evaluation_folders(folder).items()
    }


def compare_folders(a: str, b: str, *, force: bool, seed: int = 0) -> list[Comparison]:
    """Compare all sets of problems that two folders have in common, and the mean of benchmarks.

    Args:
        a: the first, as `find_evaluations` takes it.
        b: the second.
        force: compare what has differing cards, too.
        seed: of the tests' draws.

    Raises:
        DataError: nothing in common, or cards that differ and no `force`.
    """
    ours, theirs = find_evaluations(a), find_evaluations(b)
    if len(ours) == len(theirs) == 1:
        name = next(iter(ours)) or next(iter(theirs)) or "the problems"
        pairs = {name: (*ours.values(), *theirs.values())}
    else:
        pairs = {name: (ours[name], theirs[name]) for name in ours if name in theirs}
    if not pairs:
        raise DataError(
            f"{a} and {b}",
            f"they have no set of problems in common: {', '.join(ours)}; {', '.join(theirs)}.",
            "Evaluate both on the same suite.",
        )
    read = {name: (read_evaluation(a), read_evaluation(b)) for name, (a, b) in pairs.items()}
    found = [compare(*both, name, force=force, seed=seed) for name, both in read.items()]
    benchmarks = {name: both for name, both in read.items() if name}
    if len(benchmarks) > 1:
        shares = [_right_shares(*both) for both in benchmarks.values()]
        tests = {METRIC: average_test(shares, seed=seed)}
        reasons = [reason for one in found for reason in one.differences if one.problem_set]
        found.append(Comparison(average_name(benchmarks), tests, [*dict.fromkeys(reasons)]))
    return found


def compare(
    a: Evaluation, b: Evaluation, problem_set: str, *, force: bool = False, seed: int = 0
) -> Comparison:
    """Paired tests of pass@1, pass@n, maj@n, length and truncation, b - a.

    Args:
        a: the first model's answers.
        b: the second's.
        problem_set: what they were asked.
        force: go on in spite of differing cards, over the problems that both answered.
        seed: of the draws.

    Raises:
        DataError: cards that differ in more than weights and seed, and no `force`; or no problem
            in common.
    """
    reasons = comparable(a.card, b.card)
    if reasons and not force:
        raise DataError(
            f"{a.folder / CARD} and {b.folder / CARD}",
            f"these evaluations were not made alike: {'; '.join(reasons)}.",
            "Evaluate both in the same way, or add --force and say so beside the numbers.",
        )
    common = set(a.answers["problem_id"]) & set(b.answers["problem_id"])
    if not common:
        raise DataError(
            f"{a.folder} and {b.folder}",
            "they have no problem in common.",
            "Evaluate both on the same problems.",
        )
    k = min(a.samples_per_problem, b.samples_per_problem)
    mine, theirs = (_per_problem(one.answers, common, k) for one in (a, b))
    tests = {name: paired_test(mine[name], theirs[name], seed=seed) for name in mine}
    return Comparison(problem_set, tests, reasons)


def _right_shares(a: Evaluation, b: Evaluation) -> tuple[list[float], list[float]]:
    """Share of right samples of each problem that both answered, in order of its id."""
    share = (pl.col("status") == Status.OK).mean()
    both = (
        one.answers.group_by("problem_id").agg(share=share).sort("problem_id") for one in (a, b)
    )
    ours, theirs = both
    joined = ours.join(theirs, on="problem_id", maintain_order="left")
    return joined["share"].to_list(), joined["share_right"].to_list()


def _per_problem(answers: pl.DataFrame, common: set[str], k: int) -> dict[str, list[float]]:
    """Metrics of each problem, in order of its id."""
    found: dict[str, list[float]] = {}
    for _, group in answers.filter(pl.col("problem_id").is_in(list(common))).group_by(
        "problem_id", maintain_order=True
    ):
        is_right = (group["status"] == Status.OK).to_list()
        n, c = len(is_right), sum(is_right)
        row = {"pass@1": c / n}
        if k > 1:
            row[f"pass@{k}"] = pass_at_k(n, c, k)
            row[f"maj@{k}"] = maj_at_k(group["extracted"].to_list(), is_right, k)
        row["length"] = float(group["num_tokens"].sum()) / n
        row["truncated_fraction"] = int((group["finish"] == Finish.LENGTH).sum()) / n
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found
