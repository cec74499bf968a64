"""Which figures a run gets, under which name, and how to read each.

Not here: drawing (`figures.py`) and the page they stand on (`page.py`).
"""

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from megatron_reason.files import atomic_path
from megatron_reason.report import figures, numbers
from megatron_reason.report.figures import Look, Plot
from megatron_reason.report.reading import Evaluation, RunView


@dataclass(frozen=True)
class Picture:
    """One figure of the report."""

    name: str
    """Name of its files, without suffix."""
    title: str
    caption: str
    """How to read it."""
    png: bytes
    numbers: pl.DataFrame

    @property
    def data_uri(self) -> str:
        """The picture as text that stands in a page."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = struct.unpack(">II", self.png[16:24])
        return width, height

    def save(self, folder: Path) -> None:
        """Write `<name>.png` and `<name>.csv`."""
        with atomic_path(folder / f"{self.name}.png") as path:
            path.write_bytes(self.png)
        with atomic_path(folder / f"{self.name}.csv") as path:
            self.numbers.write_csv(path)


def pictures(run: RunView) -> list[Picture]:
    """Every figure there are numbers for."""
    look = figures.looks(run.variants)
    drawn = [*_of_evaluations(run, look), *_of_selections(run, look), *_of_training(run, look)]
    return [
        Picture(name, title, caption, plot.png(), plot.numbers)
        for name, title, caption, plot in drawn
    ]


_Drawn = Iterator[tuple[str, str, str, Plot]]


def _of_evaluations(run: RunView, look: dict[str, Look]) -> _Drawn:
    for index, name in enumerate(run.problem_sets):
        found = [each for each in run.evaluations if each.problem_set == name]
        yield from _of_set(found, look, suffix=f"_{name}" if index else "", title=f" on {name}")


def _of_set(found: list[Evaluation], look: dict[str, Look], *, suffix: str, title: str) -> _Drawn:
    points = numbers.headline_intervals(found)
    if len(points):
        yield (
            f"headline{suffix}", f"Accuracy and entropy{title}",
            "A mark is the value, the bar its 95 % interval; the better model is further right on "
            "the left, and a model whose entropy falls far below the base model's has lost "
            "alternatives to try.",
            figures.intervals(points, look),
        )  # fmt: skip
    points = numbers.pass_at_k(found)
    if len(points):
        yield (
            f"pass_at_k{suffix}", f"pass@k{title}",
            "The share of problems solved by at least one of k answers, with 95 % bands: a curve "
            "that starts higher is more reliable, one that rises more steeply is more diverse.",
            figures.pass_curves(points, look),
        )  # fmt: skip
    answers = numbers.answer_lengths(found)
    if len(answers):
        yield (
            f"answer_length{suffix}", f"Length of answers{title}",
            "Dots are medians, thick bars hold the middle half of the answers and thin ones eight "
            "in ten; wrong answers much longer than right ones point to rambling or truncation.",
            figures.lengths(answers, look),
        )  # fmt: skip


def _of_selections(run: RunView, look: dict[str, Look]) -> _Drawn:
    unused = figures.looks([f"no variant {i}" for i in range(len(run.selections))]).values()
    colours = {
        selection.name: look.get(selection.variants[0], spare) if selection.variants else spare
        for selection, spare in zip(run.selections, unused, strict=True)
    }
    parts = [
        ("ppl", "perplexity", "Perplexity before and after selection",
         "What each selection took (colour) from its pool (grey), as shares of each; values beyond "
         "the right edge stand in the last bar, and a dashed line is what the rule aimed at."),
        ("num_tokens", "length", "Length before and after selection",
         "The same selections by length: a rule on perplexity that also shifts this picture has "
         "selected for length as well."),
    ]  # fmt: skip
    for column, name, title, caption in parts:
        shown = [s for s in run.selections if s.pool[column].cast(pl.Float64).is_finite().any()]
        if not shown:
            continue
        found = numbers.selected(shown, column)
        axis = "perplexity under the base model" if column == "ppl" else "tokens of the response"
        plot = figures.distributions(found.values, found.targets, colours, axis=axis)
        yield f"selection_{name}", title, caption, plot


def _of_training(run: RunView, look: dict[str, Look]) -> _Drawn:
    parts = [
        ("loss", "Loss by part", numbers.loss_parts(run),
         "train/loss is what was minimised, the panels below it its terms before they are weighted "
         "and added."),
        ("entropy", "Entropy over training", numbers.entropies(run),
         "Mean entropy of the model's next-token predictions, by what is done with the sequence: "
         "imitation alone usually lowers it, and suppressing confident errors should hold it up."),
        ("optimizer", "Gradient norm and learning rate", numbers.progress_of_optimizer(run),
         "Spikes of the norm mark hard batches or instability; variants with the same schedule "
         "have the same rate, and their lines cover each other."),
    ]  # fmt: skip
    for name, title, points, caption in parts:
        if len(points):
            yield name, title, caption, figures.curves(points, look)
