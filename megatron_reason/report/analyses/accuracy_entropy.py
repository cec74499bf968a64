"""pass@1 against the entropy of the answers (SRFT Figure 4, as a map). Not here: the crosses."""

from collections.abc import Iterator, Sequence

from megatron_reason.evaluation.summary import read_summary
from megatron_reason.report.analysis import Plot, analysis, slug
from megatron_reason.report.figures import accuracy_and_entropy
from megatron_reason.report.numbers import metric_numbers
from megatron_reason.report.places import evaluations


@analysis("accuracy_entropy", takes="evaluations with measured entropy")
def draw(inputs: Sequence[str]) -> Iterator[Plot]:
    """pass@1 against entropy, a cross of 95 % intervals per model (SRFT, Figure 4)."""
    for problem_set, folders in evaluations(inputs).items():
        summaries = {label: read_summary(folder) for label, folder in folders.items()}
        yield Plot(
            f"accuracy_entropy_{slug(problem_set)}",
            "Crosses span 95 % intervals over problems: up is more accurate, right is less "
            "decided.",
            accuracy_and_entropy(summaries, problem_set, [*summaries]),
            metric_numbers(summaries, "pass@1", "mean_entropy"),
        )
