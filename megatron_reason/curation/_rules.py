"""Rules of the stage `select`: which of the eligible responses are taken.

Every rule is a configuration with a `choose`: a pure function of the candidates, in the columns
that `select_gaussian` documents, and of what is wanted. Not here: eligibility and tables
(`select.py`).
"""

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from megatron_reason.config.base import PluginConfig
from megatron_reason.curation._gaussian import Exactness, GaussianBins, Prefer, select_gaussian


@dataclass(frozen=True)
class Wanted:
    """How much a rule is to take."""

    total: int
    per_query: int
    seed: int


@dataclass(frozen=True)
class Choice:
    """What a rule took, and how that compares with what it aimed at."""

    rows: pl.DataFrame
    edges: list[float]
    """Edges of the perplexity bins the aim is given for; empty for a rule without bins."""
    targets: list[int]
    """Rows aimed at, per bin."""
    taken: list[int]
    """Rows taken, per bin."""
    available: list[int]
    """Rows there were, per bin."""

    def aim(self, total: int) -> int:
        """Rows aimed at where `total` are wanted: fewer where the bins' targets are floored."""
        return sum(self.targets) if self.targets else total


class GaussianRule(PluginConfig):
    """Perplexities follow a truncated normal distribution (OXA, promotion data)."""

    name: Literal["gaussian"] = "gaussian"
    """Name of the rule."""
    mean: float = Field(..., gt=0)
    """Centre of the bell, as a perplexity."""
    std: float = Field(default=0.25, gt=0)
    """Standard deviation, in units of perplexity."""
    low: float = Field(default=1.0, ge=0)
    """Smallest perplexity considered."""
    high: float = Field(default=5.0, gt=0)
    """Largest perplexity considered."""
    bin_width: float = Field(default=0.05, gt=0)
    """Width of the bins that quotas are computed for."""
    prefer: Prefer = "long"
    """Within a bin: longest responses first, shortest first, or any."""
    exact: Exactness = "official"
    """`official` repeats the published script's duplicates when `per_problem` >= 2; `fixed` not;
    `paper` follows Algorithm 1, which floors the bins' shares."""

    @model_validator(mode="after")
    def _has_bins(self) -> Self:
        if self.high - self.low < self.bin_width:
            raise ValueError(f"no bin of width {self.bin_width} in [{self.low}, {self.high}]")
        return self

    def choose(self, candidates: pl.DataFrame, wanted: Wanted) -> Choice:
        """Apply the rule."""
        bins = GaussianBins(self.mean, self.std, self.low, self.high, self.bin_width)
        rows = select_gaussian(
            candidates,
            **self.model_dump(exclude={"name"}),
            total=wanted.total,
            max_per_query=wanted.per_query,
            seed=wanted.seed,
        )
        counts = Counter(bins.index(ppl) for ppl in rows["ppl"].to_list())
        there = bins.indices(candidates["ppl"].cast(pl.Float64).fill_null(np.nan).to_numpy())
        return Choice(
            rows,
            edges=[self.low + index * self.bin_width for index in range(bins.count + 1)],
            targets=bins.targets(wanted.total, hand_out_rest=self.exact != "paper"),
            taken=[counts[index] for index in range(bins.count)],
            available=np.bincount(there[there >= 0], minlength=bins.count).tolist(),
        )


class LowestRule(PluginConfig):
    """Lowest perplexity first (OXA, suppression data; SFT_LP)."""

    name: Literal["lowest"] = "lowest"
    """Name of the rule."""
    floor: float = Field(default=0.0, ge=0)
    """Responses below this perplexity are passed over; 1.2 keeps out degenerate repetition."""

    def choose(self, candidates: pl.DataFrame, wanted: Wanted) -> Choice:
        """Apply the rule: ascending perplexity; of equals, the first come."""
        ascending = candidates.filter(pl.col("ppl") >= self.floor).sort("ppl", maintain_order=True)
        return _without_bins(_capped(ascending, wanted))


class RandomRule(PluginConfig):
    """Uniformly at random (plain SFT)."""

    name: Literal["random"] = "random"
    """Name of the rule."""

    def choose(self, candidates: pl.DataFrame, wanted: Wanted) -> Choice:
        """Apply the rule."""
        return _without_bins(_capped(_shuffled(candidates, wanted.seed), wanted))


class IntervalRule(PluginConfig):
    """Uniformly at random from an interval of perplexity (OXA's ablation)."""

    name: Literal["interval"] = "interval"
    """Name of the rule."""
    low: float = Field(..., ge=0)
    """Smallest perplexity taken."""
    high: float = Field(..., gt=0)
    """Largest perplexity taken."""

    def choose(self, candidates: pl.DataFrame, wanted: Wanted) -> Choice:
        """Apply the rule."""
        inside = candidates.filter(pl.col("ppl").is_between(self.low, self.high))
        return _without_bins(_capped(_shuffled(inside, wanted.seed), wanted))


Rule = Annotated[GaussianRule | LowestRule | RandomRule | IntervalRule, Field(discriminator="name")]


def _shuffled(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    return rows[np.random.default_rng(seed).permutation(len(rows))]


def _capped(ordered: pl.DataFrame, wanted: Wanted) -> pl.DataFrame:
    """The first rows of `ordered`, at most `per_query` of one query and `total` in all."""
    rank = pl.int_range(pl.len()).over("query_id")
    return ordered.filter(rank < wanted.per_query).head(wanted.total)


def _without_bins(rows: pl.DataFrame) -> Choice:
    return Choice(rows, edges=[], targets=[], taken=[], available=[])
