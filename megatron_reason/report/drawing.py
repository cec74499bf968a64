"""How figures look: style, colours, panels; the only importer of matplotlib.

A model keeps its colour, line and marker in every panel, and the colours (Okabe and Ito's) can be
told apart with any colour vision. Not here: any figure (`figures.py`, `analyses/`).
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, ScalarFormatter

from megatron_reason.report.run_data import BASE

__all__ = [
    "INK",
    "RIGHT",
    "SOFT",
    "WIDTH_IN",
    "WRONG",
    "Axes",
    "Figure",
    "LogLocator",
    "Look",
    "MaxNLocator",
    "ScalarFormatter",
    "as_png",
    "diverging_colour",
    "legend_below",
    "looks",
    "palette",
    "panel",
    "styled",
]

P = ParamSpec("P")

_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
INK, SOFT = "#1B1F24", "#5B6470"
RIGHT, WRONG = "#0072B2", "#D55E00"
WIDTH_IN = 5.0
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E7EB",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.dpi": 160,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Look:
    """How one model is drawn."""

    color: str
    linestyle: Any
    marker: str


def looks(models: Sequence[str]) -> dict[str, Look]:
    """Look of each model, no two alike up to 36; the base model is grey."""
    trained = [name for name in models if name != BASE]
    return {name: _look(i) for i, name in enumerate(trained)} | {BASE: Look(SOFT, "-", "x")}


def _look(index: int) -> Look:
    # Each time the colours begin anew, lines and markers are one further on.
    turned = index + index // len(_PALETTE)
    return Look(palette(index), _LINES[turned % len(_LINES)], _MARKERS[turned % len(_MARKERS)])


def palette(index: int) -> str:
    """The `index`-th colour, beginning anew after the last."""
    return _PALETTE[index % len(_PALETTE)]


def diverging_colour(value: float) -> str:
    """Colour of a value in [-1, 1]: red below 0, white at 0, blue above; the root of its size.

    Most changes are small, and must still be seen.
    """
    strength = min(abs(value), 1.0) ** 0.5
    end = (33, 102, 172) if value > 0 else (178, 24, 43)
    red, green, blue = (round(255 + (part - 255) * 0.75 * strength) for part in end)
    return f"#{red:02x}{green:02x}{blue:02x}"


def styled(draw: Callable[P, Figure | None]) -> Callable[P, Figure | None]:
    """Decorator: draw under this module's style, leaving matplotlib's global settings alone."""

    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure | None:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return inner


def panel(title: str, x_label: str, *, height_in: float = 3.4) -> tuple[Figure, Axes]:
    """An empty figure of one panel; draw on it inside a function under `styled`."""
    figure = Figure(figsize=(WIDTH_IN, height_in))
    ax = figure.subplots()
    ax.set_title(title)
    ax.set_xlabel(x_label)
    return figure, ax


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def legend_below(figure: Figure) -> None:
    """Put one legend under all panels, if the first of them has anything to name.

    It has as many columns, up to three, as its words leave room for.
    """
    handles, _ = figure.axes[0].get_legend_handles_labels()
    for columns in range(min(len(handles), 3), 0, -1):
        legend = figure.legend(loc="outside lower center", ncols=columns, columnspacing=1.4)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()
