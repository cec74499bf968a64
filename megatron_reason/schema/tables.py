"""Parquet tables with a written, versioned schema: what stages read and write.

A table is a folder entry `<kind>.parquet`; its schema metadata names the kind and version. Reading
checks columns and types; rows that a stage refuses go to `quarantine.parquet` beside it, each with
a reason and its place. Tables of any length are read and written in batches of bounded size. Not
here: what any column means (`records.py`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_reason.errors import SchemaError
from megatron_reason.files import QUARANTINE, atomic_path

VERSION = 1
BATCH_BYTES = 32 << 20
"""Uncompressed size aimed at for a batch in memory and for a row group in a file."""
_MOST_BATCH_ROWS = 1 << 16
_READ_BUFFER_BYTES = 1 << 20
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


class Kind(StrEnum):
    """The tables of a run."""

    PROBLEMS = "problems"
    SAMPLES = "samples"
    TOKENS = "tokens"
    GENERATIONS = "generations"


_PROBLEM_FIELDS = [
    ("problem_id", pa.string()),
    ("messages", _MESSAGES),
    ("answer", pa.string()),
    ("source", pa.string()),
    ("family", pa.string()),
    ("split", pa.string()),
]

SCHEMAS: Mapping[Kind, pa.Schema] = {
    Kind.PROBLEMS: pa.schema(_PROBLEM_FIELDS),
    Kind.SAMPLES: pa.schema(
        [
            ("sample_id", pa.string()),
            *_PROBLEM_FIELDS,
            ("response", pa.string()),
            ("finish", pa.string()),
            ("origin", pa.string()),
            ("generator", pa.string()),
            ("status", pa.string()),
            ("score", pa.float64()),
            ("extracted", pa.string()),
            ("nll_sum", pa.float64()),
            ("num_tokens", pa.int64()),
            ("ppl", pa.float64()),
            ("mean_entropy", pa.float64()),
            ("min_logprob", pa.float64()),
            ("scorer", pa.string()),
            ("role", pa.string()),
        ]
    ),
    Kind.TOKENS: pa.schema(
        [
            ("sample_id", pa.string()),
            ("problem_id", pa.string()),
            ("role", pa.string()),
            ("ids", pa.list_(pa.int32())),
            ("num_prompt_tokens", pa.int32()),
            ("template_hash", pa.string()),
        ]
    ),
    Kind.GENERATIONS: pa.schema(
        [
            ("problem_id", pa.string()),
            ("sample_index", pa.int32()),
            ("problem", pa.string()),
            ("answer", pa.string()),
            ("family", pa.string()),
            ("response", pa.string()),
            ("finish", pa.string()),
            ("num_tokens", pa.int32()),
            ("mean_entropy", pa.float64()),
            ("status", pa.string()),
            ("score", pa.float64()),
            ("extracted", pa.string()),
        ]
    ),
}


def table_path(folder: Path, kind: Kind) -> Path:
    """Where the table of `kind` lies in a stage's folder."""
    return folder / f"{kind}.parquet"


class TableWriter:
    """Writes a table batch by batch; it appears under its name when all went well, or not at all.

    Args:
        folder: the stage's output folder, made if need be.
        kind: which schema to write; columns are cast to it, missing ones become null.
    """

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.num_rows = 0
        self._folder = folder
        self._schema = SCHEMAS[kind].with_metadata({"kind": str(kind), "version": str(VERSION)})
        self._target = table_path(folder, kind)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        path = self._stack.enter_context(atomic_path(self._target))
        writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._writer = self._stack.enter_context(writer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def append(self, rows: pl.DataFrame | Iterable[object]) -> None:
        """Write further rows: a frame, or dataclass records of `records.py`.

        Raises:
            SchemaError: a column that the kind does not have, or values that do not fit its type.
        """
        table = _as_arrow(rows, self._schema, self._folder)
        if table.num_rows:
            per_group = rows_per_batch(table.num_rows, table.nbytes)
            self._writer.write_table(table, row_group_size=per_group)
            self.num_rows += table.num_rows


def rows_per_batch(num_rows: int, num_bytes: int) -> int:
    """How many rows of a table of this size make a batch of `BATCH_BYTES`; at least one."""
    mean_bytes = max(num_bytes / max(num_rows, 1), 1)
    return max(min(int(BATCH_BYTES / mean_bytes), _MOST_BATCH_ROWS), 1)


def write_table(folder: Path, kind: Kind, rows: pl.DataFrame | Iterable[object]) -> Path:
    """Write `rows` atomically as the table of `kind` in `folder`; see `TableWriter`."""
    with TableWriter(folder, kind) as writer:
        writer.append(rows)
    return table_path(folder, kind)


def read_table(
    folder: Path, kind: Kind, *, filled: Sequence[str] = (), columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """Read the table of `kind` from `folder` (or from the parquet file `folder` itself).

    Args:
        folder: stage folder or parquet file.
        kind: schema the file must have.
        filled: columns that must not hold nulls, because the reader needs an earlier stage's work.
        columns: columns read; None takes all.

    Raises:
        SchemaError: no such file, other columns or types, or nulls in a column of `filled`.
    """
    source = TableReader(folder, kind)
    wanted = list(columns or source.schema.names)
    batches = list(source.batches(columns=[*wanted, *(c for c in filled if c not in wanted)]))
    frame = pl.concat(batches) if batches else source.empty(wanted)
    for name in filled:
        if empty := frame[name].null_count():
            raise source.not_filled(name, empty, len(frame))
    return frame.select(wanted)


class TableReader:
    """A table on disk, read in batches of rows.

    Args:
        folder: stage folder or parquet file.
        kind: schema the file must have.

    Raises:
        SchemaError: no such file, one that is cut short, or other columns.
    """

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.path = folder if folder.suffix == ".parquet" else table_path(folder, kind)
        self.schema = SCHEMAS[kind]
        if not self.path.is_file():
            raise SchemaError(
                str(self.path),
                f"there is no table of {kind} here.",
                "Run the stage that writes it, or point to another folder.",
            )
        try:
            self._metadata = pq.read_metadata(self.path)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._broken(error) from error
        names = self._metadata.schema.to_arrow_schema().names
        if missing := [name for name in self.schema.names if name not in names]:
            raise SchemaError(
                str(self.path),
                f"a table of {kind} needs the columns {', '.join(missing)}; "
                f"this file has {', '.join(names)}.",
                "Bring foreign files in with the stage 'ingest'.",
            )

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return self._metadata.num_rows

    @property
    def num_bytes(self) -> int:
        """Uncompressed size of the table."""
        groups = range(self._metadata.num_row_groups)
        return sum(self._metadata.row_group(group).total_byte_size for group in groups)

    def fingerprint(self) -> str:
        """What `fingerprint` says of the file."""
        return fingerprint(self.path)

    def empty(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The table's columns without rows."""
        frame = pl.DataFrame(self.schema.empty_table())
        return frame if columns is None else frame.select(columns)

    def batches(
        self, *, columns: Sequence[str] | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[pl.DataFrame]:
        """Rows `start` to `stop` in order, in frames of about `BATCH_BYTES` at most.

        Raises:
            SchemaError: pages that cannot be read, or a column of another type.
        """
        names = list(columns or self.schema.names)
        stop = self.num_rows if stop is None else min(stop, self.num_rows)
        types = pa.schema([self.schema.field(name) for name in names])
        first = 0
        try:
            # Without a buffer pyarrow loads the whole column chunk of a row group at once.
            with pq.ParquetFile(self.path, buffer_size=_READ_BUFFER_BYTES) as file:
                for group in range(self._metadata.num_row_groups):
                    chunk = self._metadata.row_group(group)
                    if first < stop and first + chunk.num_rows > start:
                        size = rows_per_batch(chunk.num_rows, chunk.total_byte_size)
                        at = first
                        for batch in file.iter_batches(size, [group], columns=names):
                            low, high = max(start - at, 0), min(stop - at, batch.num_rows)
                            at += batch.num_rows
                            if low < high:
                                table = pa.Table.from_batches([batch.slice(low, high - low)])
                                yield pl.DataFrame(table.select(names).cast(types))
                    first += chunk.num_rows
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise self._broken(error, first) from error

    def not_filled(self, column: str, num_empty: int, num_rows: int) -> SchemaError:
        """Error for rows that lack what an earlier stage fills in."""
        return SchemaError(
            str(self.path),
            f"{num_empty} of {num_rows} rows have no '{column}'.",
            _STAGE_THAT_FILLS.get(column, "Fill the column before this stage."),
        )

    def _broken(self, error: Exception, row: int = 0) -> SchemaError:
        return SchemaError(
            str(self.path),
            f"this file is cut short or damaged (in the row group that begins at row {row}): "
            f"{error}.",
            "Make it again: remove the folder and run the stage that writes it.",
        )


_STAGE_THAT_FILLS = {
    "status": "Run the stage 'grade' first.",
    "ppl": "Run the stage 'score' first.",
    "num_tokens": "Run the stage 'score' first.",
    "role": "Run the stage 'select' first.",
}


class Quarantine:
    """Rows a stage refuses, written to `quarantine.parquet` in `folder` and counted by reason.

    A context manager: what was added is there when it is left, by an error too. Without rows there
    is no file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[dict[str, str]] = []
        self._waiting_characters = 0
        self._counts = Counter[str]()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flush()
        self._stack.close()

    def add(self, reason: str, row: object, detail: str = "", *, place: str = "") -> None:
        """Set `row` aside.

        Args:
            reason: short phrase that counts are grouped by.
            row: the row itself.
            detail: what exactly was found.
            place: file and line, or table and row, where it stands.
        """
        self._counts[reason] += 1
        text = repr(row)
        self._waiting.append({"reason": reason, "place": place, "detail": detail, "row": text})
        self._waiting_characters += len(text)
        if self._waiting_characters > BATCH_BYTES // 4 or len(self._waiting) >= 10_000:
            self._flush()

    def counts(self) -> dict[str, int]:
        """Number of rows by reason."""
        return dict(self._counts)

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            path = self._stack.enter_context(atomic_path(self._folder / QUARANTINE))
            writer = pq.ParquetWriter(path, QUARANTINE_SCHEMA, compression="zstd")
            self._writer = self._stack.enter_context(writer)
        self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=QUARANTINE_SCHEMA))
        self._waiting, self._waiting_characters = [], 0


def fingerprint(path: Path) -> str:
    """Hash of a parquet file's footer and size: offsets and statistics of every column chunk.

    It tells tables apart without reading them, which takes minutes where they are large.
    """
    footer_bytes = pq.read_metadata(path).serialized_size
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(size - 8 - footer_bytes, 0))
        return sha256(stream.read() + str(size).encode()).hexdigest()[:16]


def join_quarantines(folders: Iterable[Path], output: Path) -> None:
    """Write the quarantined rows of `folders`, in order, as the quarantine of `output`."""
    paths = [path for folder in folders if (path := folder / QUARANTINE).is_file()]
    if not paths:
        return
    with (
        atomic_path(output / QUARANTINE) as target,
        pq.ParquetWriter(target, QUARANTINE_SCHEMA, compression="zstd") as writer,
    ):
        for path in paths:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches():
                    writer.write_batch(batch)


QUARANTINE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("reason", "place", "detail", "row")]
)


def _as_arrow(rows: pl.DataFrame | Iterable[object], schema: pa.Schema, folder: Path) -> pa.Table:
    frame, records = (rows, []) if isinstance(rows, pl.DataFrame) else (None, [*map(_as_row, rows)])
    found = {*frame.columns} if frame is not None else {name for row in records for name in row}
    if extra := sorted(found - set(schema.names)):
        raise SchemaError(
            str(folder),
            f"columns {', '.join(extra)} are not part of this table.",
            "Add them to schema/tables.py, with a new version, or leave them out.",
        )
    try:
        if frame is None:
            return pa.Table.from_pylist(records, schema=schema)
        missing = [pl.lit(None).alias(name) for name in schema.names if name not in found]
        return frame.with_columns(missing).select(schema.names).to_arrow().cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            str(folder), f"values do not fit the schema: {error}.", "Mend the rows before writing."
        ) from error


def _as_row(record: object) -> dict[str, Any]:
    row = asdict(record)  # type: ignore[call-overload]
    if (problem_id := getattr(record, "problem_id", None)) is not None:
        row["problem_id"] = problem_id
    return row
