"""OXA (arXiv 2603.16206) Figure 3: pass@k for every k, with bands. Not here: the estimator."""

from collections.abc import Iterator, Sequence

from megatron_reason.evaluation.summary import read_summary
from megatron_reason.report.analysis import Plot, analysis, slug
from megatron_reason.report.figures import pass_at_k_curves
from megatron_reason.report.numbers import metric_numbers
from megatron_reason.report.places import evaluations


@analysis("pass_at_k", takes="evaluations")
def draw(inputs: Sequence[str]) -> Iterator[Plot]:
    """pass@k against k with 95 % bands over problems, a line per model (OXA, Figure 3)."""
    for problem_set, folders in evaluations(inputs).items():
        summaries = {label: read_summary(folder) for label, folder in folders.items()}
        yield Plot(
            f"pass_at_k_{slug(problem_set)}",
            "Share of problems solved by at least one of k answers (unbiased estimate), with "
            "95 % bands over problems.",
            pass_at_k_curves(summaries, problem_set, [*summaries]),
            metric_numbers(summaries, "pass@*"),
        )
