"""Data Rewriting (arXiv 2509.15157) Table 3 and Figure 3: log-probability before and after.

Reads what the stage `shift` wrote. Not here: scoring (`curation/shift.py`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.files import read_json
from megatron_reason.report.analysis import Plot, analysis, slug
from megatron_reason.report.drawing import RIGHT, SOFT, Figure, legend_below, panel, styled

_NUMBERS = "shift.json"
_UNITS = {"logprob": "per response", "per_token": "per token"}


def stage_means(folder: Path) -> pl.DataFrame:
    """Columns stage, problems, logprob_before, logprob_after, per_token_before, per_token_after...

    Args:
        folder: output of the stage `shift`.

    Raises:
        DataError: there is no such output.
    """
    path = folder / _NUMBERS
    if not path.is_file():
        raise DataError(
            str(folder), f"there is no {_NUMBERS} here.", "Give the folder of a stage 'shift'."
        )
    means = read_json(path)["mean"]
    return pl.DataFrame([{"stage": name, **numbers} for name, numbers in means.items()])


@styled
def before_and_after(numbers: pl.DataFrame, unit: str) -> Figure | None:
    """Two bars per rewriting stage.

    Args:
        numbers: of `stage_means`.
        unit: `logprob` (of whole responses) or `per_token`.
    """
    if numbers.is_empty():
        return None
    stages = numbers["stage"].to_list()
    figure, ax = panel(f"mean log-probability {_UNITS[unit]} (nats)", "stage of the rewriting")
    places = np.arange(len(stages), dtype=float)
    for shift, column, color, label in (
        (-0.2, f"{unit}_before", SOFT, "expert's response"),
        (0.2, f"{unit}_after", RIGHT, "rewritten response"),
    ):
        bars = ax.bar(places + shift, numbers[column].to_numpy(), 0.38, color=color, label=label)
        ax.bar_label(bars, fmt="%.3g", fontsize=9, padding=2)
    ax.set_xticks(
        places, [f"{s}\n({n})" for s, n in numbers.select("stage", "problems").iter_rows()]
    )
    ax.margins(y=0.15)
    legend_below(figure)
    return figure


@analysis("rewriting", takes="folders of the curation stage 'shift'")
def draw(inputs: Sequence[str]) -> Iterator[Plot]:
    """Mean log-probability per rewriting stage, before and after (Data Rewriting, Figure 3)."""
    for word in inputs:
        folder = Path(word)
        numbers = stage_means(folder)
        for unit, words in _UNITS.items():
            yield Plot(
                f"rewriting_{slug(folder.name)}_{unit}",
                f"Mean log-probability {words} under the model that will be trained: nearer to 0 "
                "is more its own. Sums grow with length, so read the means per token beside them.",
                before_and_after(numbers, unit),
                numbers,
            )
