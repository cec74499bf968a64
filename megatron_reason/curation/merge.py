"""Stage `merge`: puts tables together that were made apart: the shards of one, or several sources.

Shards must be all those of one table, made with the same settings, each once. Tables of any kind
must not share a sample; rows with another answer to a question than it came with first are set
aside. Not here: roles and token ids (`mix.py`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from megatron_reason.config.base import Strict
from megatron_reason.curation._entries import FirstAnswers
from megatron_reason.curation._parts import SHARD, Shard
from megatron_reason.curation._rewriting_counts import join_counts
from megatron_reason.curation.base import Stage, StageConfig, StageContext, StageResult, stage
from megatron_reason.errors import DataError
from megatron_reason.files import read_json
from megatron_reason.logs import get_logger
from megatron_reason.schema.tables import (
    Kind,
    Quarantine,
    TableReader,
    TableWriter,
    join_quarantines,
    table_path,
)

_LOGGER = get_logger(__name__)


class MergeInput(Strict):
    """One table that is merged."""

    table: str
    """Stage whose samples are taken."""


class MergeConfig(StageConfig):
    """Configuration of the stage `merge`."""

    stage: Literal["merge"] = "merge"
    """Kind of stage."""
    tables: tuple[MergeInput, ...] = Field(..., min_length=1)
    """Tables merged; shards come out in their order, whatever the order here."""

    def inputs(self) -> tuple[str, ...]:
        """The tables merged."""
        return tuple(part.table for part in self.tables)


@stage
class Merge(Stage[MergeConfig]):
    """Writes the rows of all tables, one table after the other."""

    config_class = MergeConfig

    def run(self, context: StageContext) -> StageResult:
        """Write the merged samples, the problems where all inputs have them, the quarantines.

        Raises:
            DataError: shards that are missing, given twice or of different tables or settings, a
                shard beside a whole table, or a sample that occurs twice.
        """
        folders = {part.table: context.inputs[part.table] for part in self.config.tables}
        names = self._in_order(folders)
        sources = [TableReader(folders[name], Kind.SAMPLES) for name in names]
        self._refuse_repeats(names, sources)
        context.output.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=context.output, prefix=".aside.", suffix=".tmp") as scratch:
            with Quarantine(Path(scratch)) as quarantine:
                check = _Contradictions(quarantine)
                if all(table_path(folder, Kind.PROBLEMS).is_file() for folder in folders.values()):
                    _merge_problems({name: folders[name] for name in names}, context.output, check)
                with TableWriter(context.output, Kind.SAMPLES) as writer:
                    for name, source in zip(names, sources, strict=True):
                        for batch in source.batches():
                            writer.append(check.without(batch, name))
            join_quarantines([*(folders[name] for name in names), Path(scratch)], context.output)
        join_counts([folders[name] for name in names], context.output)
        counts = {
            f"from_{name}": source.num_rows for name, source in zip(names, sources, strict=True)
        } | quarantine.counts()
        _LOGGER.info("merged %d rows: %s", writer.num_rows, counts)
        return StageResult(writer.num_rows, counts)

    def _in_order(self, folders: dict[str, Path]) -> list[str]:
        """Names of the tables; of shards, in their order and complete."""
        shards = {
            name: Shard(**read_json(folder / SHARD))
            for name, folder in folders.items()
            if (folder / SHARD).is_file()
        }
        if not shards:
            return [*folders]
        if whole := [name for name in folders if name not in shards]:
            raise self._error(
                f"'{whole[0]}' is a whole table; the others are shards ({', '.join(shards)})",
                "Merge the shards first.",
            )
        first_name, first = next(iter(shards.items()))
        by_index: dict[int, str] = {}
        for name, shard in shards.items():
            if (shard.source, shard.settings, shard.count) != (
                first.source, first.settings, first.count,
            ):  # fmt: skip
                raise self._error(
                    f"'{name}' (of {shard.count}, table {shard.source}, settings {shard.settings}) "
                    f"and '{first_name}' (of {first.count}, table {first.source}, settings "
                    f"{first.settings}) are not shards of one whole",
                    "Make all shards of one table with the same configuration.",
                )
            if shard.index in by_index:
                raise self._error(
                    f"'{by_index[shard.index]}' and '{name}' are the same shard, "
                    f"{shard.index}/{shard.count}, {shard.rows}",
                    "Give each shard once.",
                )
            by_index[shard.index] = name
        if missing := sorted(set(range(first.count)) - set(by_index)):
            raise self._error(
                f"shards {', '.join(f'{index}/{first.count}' for index in missing)} are missing",
                "Run the stage for them, with 'shard: i/n', and give them too.",
            )
        return [by_index[index] for index in range(first.count)]

    def _refuse_repeats(self, names: Sequence[str], sources: Sequence[TableReader]) -> None:
        """Refuse a sample that occurs twice; eight bytes a row are kept for it."""
        keys: list[pl.Series] = [pl.Series(dtype=pl.UInt64)]
        owners: list[tuple[int, str]] = []
        num_rows = 0
        for name, source in zip(names, sources, strict=True):
            owners.append((num_rows, name))
            num_rows += source.num_rows
            keys += [batch["sample_id"].hash() for batch in source.batches(columns=["sample_id"])]
        hashes = pl.concat(keys).to_numpy()
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        if len(same) == 0:
            return

        def place(row: int) -> str:
            start, name = max(owner for owner in owners if owner[0] <= row)
            return f"row {row - start} of '{name}'"

        first, second = int(order[same[0]]), int(order[same[0] + 1])
        raise self._error(
            f"{len(same)} samples occur twice, one of them as {place(first)} and {place(second)}",
            "Leave one of the two tables out.",
        )

    def _error(self, what: str, way_out: str) -> DataError:
        return DataError(f"stage '{self.config.name}'", f"{what}.", way_out)


class _Contradictions:
    """Sets rows aside whose question came with another answer before."""

    def __init__(self, quarantine: Quarantine) -> None:
        self._answers = FirstAnswers()
        self._quarantine = quarantine

    def without(self, rows: pl.DataFrame, table: str) -> pl.DataFrame:
        """The rows that contradict none before them.

        Args:
            rows: problems or samples.
            table: name of the stage that wrote them.
        """
        problems = rows.select("problem_id", "messages", "answer").unique(
            "problem_id", keep="first", maintain_order=True
        )
        wrong = [
            problem_id
            for problem_id, messages, answer in problems.iter_rows()
            if self._answers.contradict([turn["content"] for turn in messages], answer)
        ]
        is_wrong = pl.col("problem_id").is_in(wrong)
        identifier = rows.columns[0]
        for row in rows.filter(is_wrong).iter_rows(named=True):
            self._quarantine.add(
                "contradictory answer", row, f"answer {row['answer']!r} is not the first",
                place=f"{table} {identifier.removesuffix('_id')} {row[identifier]}",
            )  # fmt: skip
        return rows.filter(~is_wrong)


def _merge_problems(folders: Mapping[str, Path], output: Path, check: _Contradictions) -> None:
    """Write every problem once, the first time it comes."""
    seen: set[str] = set()
    with TableWriter(output, Kind.PROBLEMS) as writer:
        for name, folder in folders.items():
            for batch in TableReader(folder, Kind.PROBLEMS).batches():
                agreed = check.without(batch, name)
                once = agreed.unique("problem_id", keep="first", maintain_order=True)
                is_new = pl.Series([key not in seen for key in once["problem_id"]])
                seen.update(once["problem_id"])
                writer.append(once.filter(is_new))
