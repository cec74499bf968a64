"""LESE Table 2: lengths of right and of other answers. Not here: the boxes (`figures.py`)."""

from collections.abc import Iterator, Sequence

import polars as pl

from megatron_reason.evaluation.compare import read_evaluation
from megatron_reason.report.analysis import Plot, analysis, slug
from megatron_reason.report.figures import lengths_by_verdict
from megatron_reason.report.numbers import length_numbers
from megatron_reason.report.places import evaluations
from megatron_reason.schema.records import Status


@analysis("lengths", takes="evaluations")
def draw(inputs: Sequence[str]) -> Iterator[Plot]:
    """Tokens of right and of other answers, two boxes per model (LESE, Table 2)."""
    for problem_set, folders in evaluations(inputs).items():
        answers = {label: read_evaluation(folder).answers for label, folder in folders.items()}
        means = pl.concat(
            frame.group_by(is_right=pl.col("status") == Status.OK)
            .agg(mean=pl.col("num_tokens").mean())
            .select(pl.lit(label).alias("model"), pl.all())
            for label, frame in answers.items()
        )
        yield Plot(
            f"lengths_{slug(problem_set)}",
            "Boxes hold the middle half of the answers, whiskers reach from 5 to 95 %, the white "
            "line is the median; answers at the limit were cut.",
            lengths_by_verdict(answers, problem_set),
            length_numbers(answers).join(means, on=["model", "is_right"], maintain_order="left"),
        )
