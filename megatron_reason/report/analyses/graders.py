"""Where the grader and the deterministic one disagree. Not here: comparing (`evaluation`)."""

from collections.abc import Iterator, Sequence

import polars as pl

from megatron_reason.evaluation.disagreements import Disagreements, find_disagreements
from megatron_reason.evaluation.regrade import grader_of
from megatron_reason.report.analysis import Plot, analysis, slug
from megatron_reason.report.drawing import RIGHT, WRONG, Figure, legend_below, panel, styled
from megatron_reason.report.places import evaluations
from megatron_reason.schema.tables import Kind, read_table


@styled
def disagreement_bars(found: dict[str, Disagreements], title: str) -> Figure | None:
    """Shares of answers that one grader alone accepts, two bars per model."""
    figure, ax = panel(
        f"{title}: graders disagree", "% of answers", height_in=1.4 + 0.55 * len(found)
    )
    for place, one in enumerate(found.values()):
        for shift, count, color in (
            (-0.19, one.only_grader, RIGHT), (0.19, one.only_plain, WRONG),
        ):  # fmt: skip
            bar = ax.barh(place + shift, 100 * count / one.num_answers, 0.34, color=color)
            ax.bar_label(bar, [str(count)], fontsize=9, padding=3)
    ax.set_yticks(range(len(found)), list(found))
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set_xlim(left=0)
    ax.grid(axis="y", visible=False)
    for color, label in ((RIGHT, "right for the grader alone"), (WRONG, "for 'plain' alone")):
        ax.plot([], [], "s", color=color, label=label)
    legend_below(figure)
    return figure


@analysis("graders", takes="evaluations")
def draw(inputs: Sequence[str]) -> Iterator[Plot]:
    """Answers that the grader or the deterministic one accepts alone, each listed in the JSON."""
    for problem_set, folders in evaluations(inputs).items():
        found = {
            label: find_disagreements(read_table(folder, Kind.GENERATIONS), grader_of(folder))
            for label, folder in folders.items()
        }
        rows = [
            one.rows.select(pl.lit(label).alias("model"), pl.all()) for label, one in found.items()
        ]
        yield Plot(
            f"graders_{slug(problem_set)}",
            "Answers that only one of two graders accepts: the grader of the evaluation reads "
            "other forms of the gold answer, 'plain' compares texts, numbers and letters.",
            disagreement_bars(found, problem_set),
            pl.concat(rows),
        )
