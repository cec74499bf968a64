"""OXA (arXiv 2603.16206) Figure 2a: perplexity and length of training sets. Not here: strips."""

from collections.abc import Iterator, Sequence

from megatron_reason.report.analysis import Plot, analysis, slug
from megatron_reason.report.figures import distributions
from megatron_reason.report.numbers import selection_numbers
from megatron_reason.report.places import run_folders
from megatron_reason.report.repeats import gathered
from megatron_reason.report.run_data import read_run

_TITLES = {"ppl": "perplexity under the base model", "num_tokens": "tokens of the response"}


@analysis("selection", takes="folders of runs")
def draw(inputs: Sequence[str]) -> Iterator[Plot]:
    """Perplexity and length of what each selection took, and of its pool (OXA, Figure 2a)."""
    for label, folder in run_folders(inputs).items():
        data = gathered(read_run(folder))
        for pool in dict.fromkeys(selection.pool for selection in data.selections):
            selections = [s for s in data.selections if s.pool == pool]
            for column, title in _TITLES.items():
                yield Plot(
                    f"{slug(label)}_{slug(pool)}_{column}",
                    f"Histograms of {title}, each to its own height; the candidates are grey and "
                    "behind each selection, the triangle is the median, the last bin holds all "
                    "beyond.",
                    distributions(selections, column, data.models),
                    selection_numbers(selections, column),
                )
