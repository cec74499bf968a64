"""Tables -> figures, as pure functions; the only importer of matplotlib.

Each function takes what it draws and returns a `Figure`, or None when there is nothing to draw.
Colours are Okabe and Ito's, told apart by people with any colour vision; a variant keeps its colour
in every picture. Not here: files and pages (`page.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_reason.report.run_data import Variant

mpl.use("Agg")

_PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
_NEUTRAL = "#8A8F98"
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E7EB",
    "legend.frameon": False,
    "figure.dpi": 130,
}


def colours(names: Sequence[str]) -> dict[str, str]:
    """Colour of each variant; `base` is grey."""
    others = [name for name in names if name != "base"]
    chosen = {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(others)}
    return chosen | {"base": _NEUTRAL}


def selection_distributions(
    pool: pl.DataFrame, selected: Mapping[str, pl.DataFrame], target: Mapping[str, Any] | None
) -> Figure | None:
    """Perplexity and length before and after selection (OXA, Figure 2a).

    Args:
        pool: candidates with `ppl` and `num_tokens`.
        selected: what each selection took.
        target: `selection.json` of the Gaussian, whose target counts are drawn.
    """
    pool = pool.filter(pl.col("ppl").is_not_null())
    if pool.is_empty():
        return None
    colour = colours(list(selected))
    figure, axes = _axes(1, 2, height=3.4)
    for ax, column, label in zip(
        axes, ("ppl", "num_tokens"), ("perplexity under the base model", "tokens"), strict=True
    ):
        values = pool[column].to_numpy()
        edges = np.histogram_bin_edges(np.clip(values, None, np.quantile(values, 0.98)), bins=28)
        ax.hist(values, bins=edges.tolist(), color="#DADDE2", label=f"candidates ({len(pool)})")
        for name, rows in selected.items():
            ax.hist(
                rows[column].to_numpy(), bins=edges.tolist(), histtype="step", linewidth=1.8,
                color=colour[name], label=f"{name} ({len(rows)})",
            )  # fmt: skip
        ax.set_xlabel(label)
    axes[0].set_ylabel("responses")
    if target and target.get("edges"):
        edges, wanted = np.array(target["edges"]), np.array(target["target"], dtype=float)
        middles = (edges[:-1] + edges[1:]) / 2
        axes[0].plot(middles, wanted, "k.:", linewidth=1, markersize=4, label="Gaussian target")
    axes[0].legend(fontsize=8)
    return figure


def loss_curves(variants: Sequence[Variant]) -> Figure | None:
    """Each part of the loss over the updates, one line per variant."""
    return _curves(variants, {"train/ce": "cross-entropy (nats)", "train/ul": "unlikelihood (nats)"})


def entropy_curves(variants: Sequence[Variant]) -> Figure | None:
    """Entropy on imitated and on suppressed tokens over the updates."""
    titles = {
        "train/entropy_demo": "entropy on imitated tokens (nats)",
        "train/entropy_negative": "entropy on suppressed tokens (nats)",
    }
    return _curves(variants, titles)


def optimizer_curves(variants: Sequence[Variant]) -> Figure | None:
    """Learning rate and gradient norm over the updates."""
    return _curves(variants, {"train/lr": "learning rate", "train/grad_norm": "gradient norm"})


def pass_at_k_curves(variants: Sequence[Variant]) -> Figure | None:
    """pass@k against k with interval bands (OXA, Figure 3)."""
    curves = {v.name: _pass_at_k(v) for v in variants if _pass_at_k(v)}
    if not curves:
        return None
    colour = colours([v.name for v in variants])
    figure, (ax,) = _axes(1, 1, height=3.6)
    for name, points in curves.items():
        ks = [k for k, *_ in points]
        ax.plot(ks, [p[1] for p in points], "o-", color=colour[name], label=name, markersize=4)
        low, high = [p[2] for p in points], [p[3] for p in points]
        ax.fill_between(ks, low, high, color=colour[name], alpha=0.12, linewidth=0)
    ax.set_xscale("log", base=2)
    ticks = sorted({k for points in curves.values() for k, *_ in points})
    ax.set_xticks(ticks, [str(k) for k in ticks])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("k")
    ax.set_ylabel("pass@k")
    ax.legend(fontsize=8)
    return figure


def lengths_by_verdict(variants: Sequence[Variant]) -> Figure | None:
    """Mean tokens of right and of wrong answers per variant (LESE, Table 2)."""
    answered = [v for v in variants if v.generations is not None]
    if not answered:
        return None
    figure, (ax,) = _axes(1, 1, height=3.2)
    places = np.arange(len(answered))
    for shift, (label, is_right, shade) in enumerate(
        (("right", True, "#009E73"), ("wrong", False, "#D55E00"))
    ):
        means, counts = _mean_lengths(answered, is_right=is_right)
        bars = ax.bar(places + (shift - 0.5) * 0.38, means, 0.36, color=shade, label=label)
        ax.bar_label(bars, [f"n={n}" for n in counts], fontsize=7, padding=2)
    ax.set_xticks(places, [v.name for v in answered])
    ax.set_ylabel("tokens per answer")
    ax.grid(axis="x", visible=False)
    ax.legend(fontsize=8)
    return figure


def _curves(variants: Sequence[Variant], titles: Mapping[str, str]) -> Figure | None:
    trained = {v.name: v.metrics for v in variants if v.metrics is not None}
    shown = [m for m in titles if any(m in frame.columns for frame in trained.values())]
    if not shown:
        return None
    colour = colours([v.name for v in variants])
    figure, axes = _axes(1, len(shown), height=3.2)
    for ax, metric in zip(axes, shown, strict=True):
        for name, frame in trained.items():
            if metric in frame.columns:
                rows = frame.select("step", metric).drop_nulls()
                ax.plot(rows["step"], rows[metric], color=colour[name], label=name, linewidth=1.6)
        ax.set_xlabel("update")
        ax.set_title(titles[metric], fontsize=10, loc="left")
    axes[0].legend(fontsize=8)
    return figure


def _pass_at_k(variant: Variant) -> list[tuple[int, float, float, float]]:
    points = [
        (int(name.removeprefix("pass@")), e.value, e.low, e.high)
        for name, e in variant.summary.items()
        if name.startswith("pass@")
    ]
    return sorted(points)


def _mean_lengths(variants: Sequence[Variant], *, is_right: bool) -> tuple[list[float], list[int]]:
    means: list[float] = []
    counts: list[int] = []
    for variant in variants:
        assert variant.generations is not None, "only answered variants are drawn"
        chosen = variant.generations.filter((pl.col("score") > 0) == is_right)["num_tokens"]
        means.append(float(chosen.sum()) / len(chosen) if len(chosen) else 0.0)
        counts.append(len(chosen))
    return means, counts


def _axes(rows: int, columns: int, *, height: float) -> tuple[Figure, list[Axes]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6 * columns, height), layout="constrained")
        return figure, list(np.ravel(figure.subplots(rows, columns)))
