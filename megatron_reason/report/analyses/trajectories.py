r"""SRFT (arXiv 2506.19767) Figure 3: checkpoints in the space that reference models span.

A reference model R answers a mix of problems; every checkpoint M scores these answers. The paper
does not give its distance. Ours is d_R(M) = mean over answers of the mean over tokens of
1 - p_M(token): 0 for a model that is sure of every word of R, 1 for one that would never say any.
Beside it stands the mean negative log-likelihood per token. Not here: scoring
(`evaluation/token_scores.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.report.analysis import Plot, analysis, slug
from megatron_reason.report.drawing import Figure, legend_below, palette, panel, styled
from megatron_reason.report.places import token_scores


def distance(scores: pl.DataFrame) -> dict[str, float]:
    """Distance of the model that scored from the one that answered.

    Returns:
        `distance` (mean of means of 1 - p), `nll` (mean of means, nats) and `num_answers`.
    """
    per_answer = scores.select(
        miss=pl.col("logprobs").list.eval(1 - pl.element().exp()).list.mean(),
        nll=-pl.col("logprobs").list.mean(),
    )
    return {
        "distance": float(per_answer["miss"].to_numpy().mean()),
        "nll": float(per_answer["nll"].to_numpy().mean()),
        "num_answers": len(scores),
    }


def positions(scores: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Columns family, checkpoint, reference, distance, nll, num_answers.

    Args:
        scores: token scores by "[family/]checkpoint@reference"; checkpoints of a family are joined
            by a line in the order given.

    Raises:
        DataError: a label of another form.
    """
    rows: list[dict[str, object]] = []
    for label, frame in scores.items():
        name, at, reference = label.rpartition("@")
        if not at or not name or not reference:
            raise DataError(
                f"trajectories {label}",
                "a label here names a checkpoint and the model whose answers it scored.",
                "Write for example sft/step100@base=scores/step100_on_base",
            )
        family, _, checkpoint = name.rpartition("/")
        rows.append(
            {
                "family": family or checkpoint, "checkpoint": checkpoint, "reference": reference,
                **distance(frame),
            }
        )  # fmt: skip
    return pl.DataFrame(rows)


@styled
def trajectory_map(numbers: pl.DataFrame, x: str, y: str) -> Figure | None:
    """Checkpoints by their distances from two references, a line per family.

    Args:
        numbers: of `positions`.
        x: one reference.
        y: another.
    """
    figure, ax = panel(f"distance from {y}", f"distance from {x}", height_in=4.2)
    drawn = False
    for index, family in enumerate(numbers["family"].unique(maintain_order=True)):
        part = numbers.filter(pl.col("family") == family)
        at = {
            (row["checkpoint"], row["reference"]): row["distance"]
            for row in part.iter_rows(named=True)
        }
        names = [
            name
            for name in part["checkpoint"].unique(maintain_order=True)
            if (name, x) in at and (name, y) in at
        ]
        if not names:
            continue
        drawn = True
        xs, ys = [at[name, x] for name in names], [at[name, y] for name in names]
        ax.plot(xs, ys, "o-", color=palette(index), markersize=5, linewidth=1.4, label=family)
        for name, one, other in zip(names, xs, ys, strict=True):
            ax.annotate(name, (one, other), xytext=(5, 4), textcoords="offset points", fontsize=8)
    ax.margins(0.15)
    legend_below(figure)
    return figure if drawn else None


@analysis("trajectories", takes="token scores labelled [FAMILY/]CHECKPOINT@REFERENCE=DIR")
def draw(inputs: Sequence[str]) -> Iterator[Plot]:
    """Checkpoints by their distances from reference models, d = mean 1 - p (SRFT, Figure 3)."""
    scores = {label: pl.read_parquet(path) for label, path in token_scores(inputs).items()}
    numbers = positions(scores)
    references = numbers["reference"].unique(maintain_order=True).to_list()
    for x, y in combinations(references, 2):
        yield Plot(
            f"trajectories_{slug(x)}_{slug(y)}",
            f"Each checkpoint at its distances from {x} and {y}: the mean over their answers of "
            "the mean over tokens of 1 - p, under the checkpoint. Down and left is nearer.",
            trajectory_map(numbers, x, y),
            numbers,
        )
