"""Output made part by part: a stage that was killed goes on at the first part that is missing.

A stage that treats every row by itself reads its input in parts of bounded size; each part of the
output is written whole, with its counts and its quarantine, before the next begins. At the end the
parts become the table. A stage may also take one shard of its input only: an even share of
consecutive rows. `shard.json` beside such a table says which, so that `merge` can refuse what does
not belong together. Not here: what is done to a row.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polars as pl

from megatron_reason.curation.base import RowwiseConfig, StageContext
from megatron_reason.errors import ConfigError
from megatron_reason.files import (
    atomic_folder,
    hash_text,
    read_json,
    write_json,
)
from megatron_reason.logs import get_logger
from megatron_reason.schema.tables import (
    Kind,
    Quarantine,
    TableReader,
    TableWriter,
    join_quarantines,
    rows_per_batch,
    write_table,
)

_LOGGER = get_logger(__name__)
PARTS = "parts"
SHARD = "shard.json"
_PLAN = "plan.json"
_COUNTS = "counts.json"


@dataclass(frozen=True)
class Shard:
    """Which rows of which table another table was made from."""

    index: int
    """From 0."""
    count: int
    source: str
    """Fingerprint of the table they come from."""
    settings: str
    """Hash of the stage's configuration, shard and name aside, and of model, template and seed."""
    start: int
    stop: int
    """Rows `start` to `stop` of the source."""

    @property
    def rows(self) -> str:
        """The rows in words."""
        return f"rows {self.start} to {self.stop}"


@dataclass(frozen=True)
class Part:
    """One step of the work: rows `start` to `stop` of the source."""

    folder: Path
    start: int
    stop: int


@dataclass
class OpenPart:
    """A part being made."""

    folder: Path
    quarantine: Quarantine
    counts: Counter[str] = field(default_factory=Counter[str])

    def write(self, rows: pl.DataFrame) -> None:
        """Its rows."""
        write_table(self.folder, Kind.SAMPLES, rows)


class PartedOutput:
    """The output of a stage that goes row by row, made in parts.

    Args:
        config: the stage's configuration; parts made with another one are thrown away.
        source: the table it reads.
        context: the stage's folder, and what else the rows may depend on.
        rows_per_part: rows of a part; None takes as many as make a batch.

    Raises:
        ConfigError: a shard that does not exist.
    """

    def __init__(
        self,
        config: RowwiseConfig,
        source: TableReader,
        context: StageContext,
        *,
        rows_per_part: int | None = None,
    ) -> None:
        self._source = source
        self._output = context.output
        self._is_shard = config.shard is not None
        self.shard = shard_of(config, source, context)
        self._rows_per_part = rows_per_part or rows_per_batch(source.num_rows, source.num_bytes)
        self.missing = self._resume()

    @property
    def num_rows(self) -> int:
        """Rows of the source that are this stage's."""
        return self.shard.stop - self.shard.start

    def read(self, part: Part) -> pl.DataFrame:
        """The rows of a part."""
        return rows_of(part, self._source)

    @contextmanager
    def open(self, part: Part) -> Iterator["OpenPart"]:
        """Write a part: it is done when the block is left without an error."""
        with atomic_folder(part.folder) as folder:
            with Quarantine(folder) as quarantine:
                opened = OpenPart(folder, quarantine)
                yield opened
            opened.counts.update(quarantine.counts())
            write_json(folder / _COUNTS, opened.counts)

    def finish(self) -> tuple[int, dict[str, int]]:
        """Make the table and the quarantine of all parts, in order, and remove the parts.

        Returns:
            Number of rows, and the sums of all counts.
        """
        counts = Counter[str]()
        with TableWriter(self._output, Kind.SAMPLES) as writer:
            for part in self._parts():
                counts.update(read_json(part.folder / _COUNTS))
                for batch in TableReader(part.folder, Kind.SAMPLES).batches():
                    writer.append(batch)
        join_quarantines([part.folder for part in self._parts()], self._output)
        if self._is_shard:
            write_shard(self._output, self.shard)
        shutil.rmtree(self._output / PARTS, ignore_errors=True)
        return writer.num_rows, dict(counts)

    def _parts(self) -> Iterator[Part]:
        for start in range(self.shard.start, self.shard.stop, self._rows_per_part):
            stop = min(start + self._rows_per_part, self.shard.stop)
            yield Part(self._output / PARTS / f"{start:010d}", start, stop)

    def _resume(self) -> list[Part]:
        plan = {**asdict(self.shard), "rows_per_part": self._rows_per_part}
        path = self._output / PARTS / _PLAN
        if path.is_file() and read_json(path) != plan:
            _LOGGER.warning("%s: parts made from other rows or settings are removed", path.parent)
            shutil.rmtree(path.parent)
        if not path.is_file():
            write_json(path, plan)
        parts = list(self._parts())
        missing = [part for part in parts if not part.folder.is_dir()]
        if len(missing) < len(parts):
            _LOGGER.info("%d of %d parts were done before", len(parts) - len(missing), len(parts))
        return missing


def rows_of(part: Part, source: TableReader) -> pl.DataFrame:
    """The rows of a part of `source`."""
    batches = list(source.batches(start=part.start, stop=part.stop))
    return pl.concat(batches) if batches else source.empty()


def shard_of(config: RowwiseConfig, source: TableReader, context: StageContext) -> Shard:
    """Rows that a stage treats: all of them, or those of its shard.

    Raises:
        ConfigError: a shard that does not exist.
    """
    index, count = (int(number) for number in (config.shard or "0/1").split("/"))
    if not 0 <= index < count:
        raise ConfigError(
            f"stage '{config.name}' shard",
            f"'{config.shard}' is no shard: of {count} the first is 0/{count}, the last "
            f"{count - 1}/{count}.",
            "Count shards from 0.",
        )
    settings = hash_text(
        config.model_dump_json(exclude={"name", "shard"})
        + context.model.model_dump_json(exclude_defaults=True)
        + context.template.model_dump_json()
        + str(context.seed)
    )
    bounds = [source.num_rows * i // count for i in (index, index + 1)]
    return Shard(index, count, source.fingerprint(), settings, *bounds)


def write_shard(output: Path, shard: Shard) -> None:
    """Say beside a table that it is a shard, so that `merge` knows."""
    write_json(output / SHARD, asdict(shard))
