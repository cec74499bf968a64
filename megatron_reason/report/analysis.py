"""What an analysis is: from folders to figures, each with the numbers behind it.

A module of `analyses/` registers one. Not here: any analysis, how figures look (`drawing.py`), and
what the words for inputs mean (`places.py`).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.files import atomic_path, write_json, write_text
from megatron_reason.registry import Registry
from megatron_reason.report.drawing import Figure, as_png


@dataclass(frozen=True)
class Plot:
    """A figure and what it shows."""

    name: str
    """Of its files, without ending."""
    caption: str
    """What it shows and how to read it."""
    figure: Figure | None
    """None where there is nothing to draw."""
    numbers: pl.DataFrame
    """What it is drawn from."""


@dataclass(frozen=True)
class Page:
    """A self-contained HTML page that an analysis writes beside its figures."""

    name: str
    html: str


Draw = Callable[[Sequence[str]], Iterable[Plot | Page]]
"""From inputs, as typed, to figures."""


@dataclass(frozen=True)
class Analysis:
    """One analysis."""

    draw: Draw
    takes: str
    """What its inputs are."""

    @property
    def __doc__(self) -> str:
        """What it shows."""
        return self.draw.__doc__ or ""


ANALYSES: Registry[Analysis] = Registry("analysis", "megatron_reason.report.analyses")


def analysis(name: str, *, takes: str) -> Callable[[Draw], Draw]:
    """Decorator: register a function as the analysis `name`; its docstring is its description."""

    def enter(draw: Draw) -> Draw:
        ANALYSES.register(name)(Analysis(draw, takes))
        return draw

    return enter


def slug(text: str) -> str:
    """`text` as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "x"


def run_analysis(name: str, inputs: Sequence[str], output: Path) -> list[Path]:
    """Draw one analysis into `output`: `<figure>.png` and its numbers, `<figure>.json`.

    Args:
        name: which analysis.
        inputs: what it shall show; see `places.py`.
        output: folder to write to.

    Returns:
        The files written.

    Raises:
        ConfigError: no such analysis.
        DataError: inputs that cannot be read, or hold nothing to draw.
    """
    chosen = ANALYSES.get(name, "mreason analyse")
    written: list[Path] = []
    for made in chosen.draw(inputs):
        if isinstance(made, Page):
            written.append(output / f"{made.name}.html")
            write_text(written[-1], made.html)
        elif made.figure is not None:
            written += _saved(made, made.figure, output)
    if not written:
        raise DataError(
            f"mreason analyse {name}",
            f"{', '.join(inputs) or 'nothing'} holds nothing to draw.",
            f"It takes {chosen.takes}.",
        )
    return written


def _saved(plot: Plot, figure: Figure, output: Path) -> list[Path]:
    picture, numbers = output / f"{plot.name}.png", output / f"{plot.name}.json"
    with atomic_path(picture) as path:
        path.write_bytes(as_png(figure))
    write_json(numbers, {"caption": plot.caption, "rows": plot.numbers.to_dicts()})
    return [picture, numbers]
