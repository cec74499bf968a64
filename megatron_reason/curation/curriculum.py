"""Stage `curriculum`: two tables become one, in groups whose share of easy samples falls.

Source: LESE, equation 7: of group i of G, counted from 0, a share of peak * (1 - (i / (G-1))^a) is
easy; G = 320 groups of 100, peak = 0.65, a = 0.11, with GSM8K as the easy part (2,101 samples in
all) and OpenR1-Math as the hard one. Within a group the order is random; across groups it is not,
so training must keep the table's order. Counts are rounded to the nearest sample. Beside the table
stands `curriculum.json` with the groups. Not here: token ids (`mix.py`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from megatron_reason.curation._rows import rows_at
from megatron_reason.curation.base import Stage, StageConfig, StageContext, StageResult, stage
from megatron_reason.errors import DataError
from megatron_reason.files import write_json
from megatron_reason.logs import get_logger
from megatron_reason.schema.tables import Kind, TableReader, TableWriter, read_table

_LOGGER = get_logger(__name__)
CURRICULUM = "curriculum.json"


class CurriculumConfig(StageConfig):
    """Configuration of the stage `curriculum`."""

    stage: Literal["curriculum"] = "curriculum"
    """Kind of stage."""
    easy: str
    """Stage whose samples begin the curriculum."""
    hard: str
    """Stage whose samples end it."""
    groups: int = Field(default=320, ge=2)
    """Number of groups."""
    group_size: int = Field(default=100, ge=1)
    """Samples in a group."""
    peak: float = Field(default=0.65, ge=0, le=1)
    """Share of easy samples in the first group; the last has none."""
    exponent: float = Field(default=0.11, gt=0)
    """How the share falls: below 1 steeply at first."""
    role: Literal["demo", "negative"] = "demo"
    """What training is to do with the samples."""
    seed: int | None = None
    """Seed of the choice and of the order in a group; None takes the run's."""

    def inputs(self) -> tuple[str, ...]:
        """The two tables."""
        return (self.easy, self.hard)


@stage
class Curriculum(Stage[CurriculumConfig]):
    """Writes the groups one after the other."""

    config_class = CurriculumConfig

    def run(self, context: StageContext) -> StageResult:
        """Write the ordered samples, no problem twice.

        Raises:
            DataError: fewer problems in a table than the groups take from it.
        """
        config = self.config
        rng = np.random.default_rng(context.seed if config.seed is None else config.seed)
        easy = easy_counts(
            config.groups, config.group_size, peak=config.peak, exponent=config.exponent
        )
        hard = [config.group_size - count for count in easy]
        streams = [
            self._draw(name, sum(counts), context, rng)
            for name, counts in ((config.easy, easy), (config.hard, hard))
        ]
        with TableWriter(context.output, Kind.SAMPLES) as writer:
            for counts in zip(easy, hard, strict=True):
                parts = [s.take(count) for s, count in zip(streams, counts, strict=True)]
                group = pl.concat([part for part in parts if len(part)])
                order = rng.permutation(len(group))
                writer.append(group[order].with_columns(role=pl.lit(config.role)))
        totals = {"groups": config.groups, "easy": sum(easy), "hard": sum(hard)}
        settings = config.model_dump(mode="json")
        write_json(
            context.output / CURRICULUM, {"settings": settings, **totals, "easy_by_group": easy}
        )
        _LOGGER.info("%s: %s", config.name, totals)
        return StageResult(writer.num_rows, totals)

    def _draw(
        self, name: str, wanted: int, context: StageContext, rng: np.random.Generator
    ) -> "_Stream":
        """A random sample of each of `wanted` random train problems of a table."""
        source = TableReader(context.inputs[name], Kind.SAMPLES)
        keys = read_table(source.path, Kind.SAMPLES, columns=("problem_id", "split"))
        rows = keys.with_row_index("row").filter(pl.col("split") == "train")
        shuffled = rows[rng.permutation(len(rows))]
        one_each = shuffled.unique("problem_id", keep="first", maintain_order=True)
        if len(one_each) < wanted:
            raise DataError(
                f"stage '{self.config.name}'",
                f"the curriculum takes {wanted} problems from '{name}', which has {len(one_each)} "
                f"({len(keys)} samples).",
                "Bring more in, or lower 'groups' or 'group_size'.",
            )
        positions = one_each.head(wanted)["row"].to_numpy()
        return _Stream(source, positions, context.output)


class _Stream:
    """Chosen rows of a table, handed out piece by piece."""

    def __init__(self, source: TableReader, positions: np.ndarray, folder: Path) -> None:
        self._batches: Iterator[pl.DataFrame] = rows_at(source, positions, folder)
        self._rest = source.empty()

    def take(self, count: int) -> pl.DataFrame:
        """The next `count` rows."""
        while len(self._rest) < count:
            self._rest = pl.concat([self._rest, next(self._batches)])
        taken, self._rest = self._rest.head(count), self._rest[count:]
        return taken


def easy_share(group: int, num_groups: int, *, peak: float = 0.65, exponent: float = 0.11) -> float:
    """Share of easy samples in group `group` of `num_groups`, from 0. Source: LESE, equation 7."""
    return peak * (1 - (group / (num_groups - 1)) ** exponent)


def easy_counts(num_groups: int, size: int, *, peak: float, exponent: float) -> list[int]:
    """Easy samples of each group of `size`, rounded to the nearest."""
    return [
        round(size * easy_share(group, num_groups, peak=peak, exponent=exponent))
        for group in range(num_groups)
    ]
