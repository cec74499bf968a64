"""Gaussian-guided perplexity sampling: pick responses so that their perplexities follow a bell.

Source: OXA, Algorithm 1, as its released script runs it. It differs from the paper in three points,
all followed here: the quotas' remainder is handed out to the largest fractions (the paper floors);
responses of equal length are ordered at random; the result is shuffled.
Not here: other ways to select (`_rules.py`) and tables (`select.py`).
"""

import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megatron_reason.errors import ConfigError

Prefer = Literal["long", "short", "any"]
Exactness = Literal["official", "fixed", "paper"]

_EDGE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class GaussianBins:
    """A truncated normal over equal bins of perplexity."""

    mean: float
    std: float
    low: float
    high: float
    bin_width: float

    @property
    def count(self) -> int:
        """Number of bins."""
        return round((self.high - self.low) / self.bin_width)

    def index(self, ppl: float) -> int | None:
        """Bin of a perplexity; None outside [low, high], NaN included.

        The tolerance is added after the division, so a value a hair below an edge belongs above it.
        """
        if not self.low <= ppl <= self.high:
            return None
        return min(int((ppl - self.low) / self.bin_width + _EDGE_TOLERANCE), self.count - 1)

    def indices(self, ppl: NDArray[np.float64]) -> NDArray[np.int64]:
        """Bin of each perplexity, as `index` gives it; -1 instead of None."""
        inside = (self.low <= ppl) & (ppl <= self.high)
        scaled = np.where(inside, ppl - self.low, 0.0) / self.bin_width + _EDGE_TOLERANCE
        return np.where(inside, np.minimum(scaled.astype(np.int64), self.count - 1), -1)

    def targets(self, total: int, *, hand_out_rest: bool = True) -> list[int]:
        """Responses wanted from each bin.

        The density at the bins' centres is normalised over the bins and floored. What flooring
        leaves over goes one by one to the largest fractions, the lower bin first among equals;
        without `hand_out_rest` it is not handed out, and fewer than `total` are wanted.
        """
        centres = [self.low + (index + 0.5) * self.bin_width for index in range(self.count)]
        densities = [math.exp(-0.5 * ((c - self.mean) / self.std) ** 2) for c in centres]
        if not (mass := sum(densities)) > 0:
            raise ConfigError(
                "rule 'gaussian'",
                f"a mean of {self.mean} with a std of {self.std} has no mass in "
                f"[{self.low}, {self.high}].",
                "Move the mean into the range, or widen the std.",
            )
        desired = [total * density / mass for density in densities]
        targets = [math.floor(value) for value in desired]
        if not hand_out_rest:
            return targets
        by_fraction = sorted(
            range(self.count), key=lambda index: desired[index] - targets[index], reverse=True
        )
        for index in by_fraction[: total - sum(targets)]:
            targets[index] += 1
        return targets


def select_gaussian(  # noqa: PLR0913 - a name and signature that others rely on
    rows: pl.DataFrame,
    *,
    mean: float,
    std: float,
    low: float,
    high: float,
    bin_width: float,
    total: int,
    max_per_query: int,
    prefer: Prefer = "long",
    seed: int = 42,
    exact: Exactness = "official",
) -> pl.DataFrame:
    """Rows whose perplexities follow a truncated normal distribution, as far as there are enough.

    Args:
        rows: columns query_id, response_id, ppl, token_len and any others; one row a response.
        mean: centre of the bell, as a perplexity.
        std: its standard deviation.
        low: smallest perplexity considered.
        high: largest perplexity considered, itself included.
        bin_width: width of the bins that quotas are computed for.
        total: rows wanted.
        max_per_query: most rows of one query, over all bins; lower bins choose first.
        prefer: within a bin, take the longest first, the shortest, or any.
        seed: seed of ties and of the final order.
        exact: `official` repeats the published script, which with `max_per_query` >= 2 takes a
            query's longest response again instead of its next one; `fixed` takes each row once;
            `paper` does, and floors the bins' shares and goes through a bin once.

    Returns:
        The selected rows in random order, fewer than `total` where bins run short.
    """
    bins = GaussianBins(mean, std, low, high, bin_width)
    targets = bins.targets(total, hand_out_rest=exact != "paper")
    bin_of = bins.indices(rows["ppl"].cast(pl.Float64).fill_null(math.nan).to_numpy())
    by_bin = np.argsort(bin_of, kind="stable")
    bounds = np.searchsorted(bin_of[by_bin], np.arange(len(targets) + 1))
    rng = random.Random(seed)
    lengths = rows["token_len"].to_numpy() * {"long": 1, "short": -1, "any": 0}[prefer]
    queries = rows["query_id"]
    taken_of_query = Counter[object]()
    selected: list[int] = []
    for target, first, end in zip(targets, bounds[:-1], bounds[1:], strict=True):
        members = by_bin[first:end]
        # One draw for each member, in the order of the table, as the script does it.
        draws = np.array([rng.random() for _ in range(len(members))])
        preferred = members[np.lexsort((draws, lengths[members]))[::-1]]
        selected += _take_from_bin(
            dict(zip(preferred.tolist(), queries[preferred].to_list(), strict=True)),
            target,
            taken_of_query,
            max_per_query=max_per_query,
            exact=exact,
        )
    rng.shuffle(selected)
    return rows[selected]


def _take_from_bin(
    query_of: Mapping[int, object],
    target: int,
    taken_of_query: Counter[object],
    *,
    max_per_query: int,
    exact: Exactness,
) -> list[int]:
    """Rows taken from one bin, whose positions come in order of preference.

    Round r lets each query have up to r rows of this bin, so that queries share it evenly; `paper`
    has one round without that.
    """
    rounds = (max_per_query,) if exact == "paper" else range(1, max_per_query + 1)
    taken: list[int] = []
    taken_here = Counter[object]()
    seen: set[int] = set()
    for most_here in rounds:
        for position, query in query_of.items():
            if len(taken) >= target:
                return taken
            if taken_of_query[query] >= max_per_query or taken_here[query] >= most_here:
                continue
            if position in seen and exact != "official":
                continue
            taken.append(position)
            seen.add(position)
            taken_of_query[query] += 1
            taken_here[query] += 1
    return taken
