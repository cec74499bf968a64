"""Parquet tables with a written, versioned schema: what stages read and write.

A table is a folder entry `<kind>.parquet`; its schema metadata names the kind and version. Reading
checks columns and types; rows that a stage refuses go to `quarantine.parquet` beside it, each with
a reason. Not here: what any column means (`records.py`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_reason.errors import SchemaError
from megatron_reason.files import QUARANTINE, atomic_path

VERSION = 1
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
            ("scorer", pa.string()),
            ("role", pa.string()),
        ]
    ),
    Kind.TOKENS: pa.schema(
        [
            ("sample_id", pa.string()),
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


def write_table(folder: Path, kind: Kind, rows: pl.DataFrame | Iterable[object]) -> Path:
    """Write `rows` atomically as the table of `kind` in `folder`.

    Args:
        folder: the stage's output folder, made if need be.
        kind: which schema to write; columns are cast to it, missing ones become null.
        rows: a frame, or dataclass records of `records.py`.

    Raises:
        SchemaError: a column that the kind does not have, or values that do not fit its type.
    """
    schema = SCHEMAS[kind]
    table = _as_arrow(rows, schema, folder)
    described = schema.with_metadata({"kind": str(kind), "version": str(VERSION)})
    target = table_path(folder, kind)
    with atomic_path(target) as path:
        pq.write_table(table.cast(described), path, compression="zstd")
    return target


def read_table(folder: Path, kind: Kind, *, filled: Sequence[str] = ()) -> pl.DataFrame:
    """Read the table of `kind` from `folder` (or from the parquet file `folder` itself).

    Args:
        folder: stage folder or parquet file.
        kind: schema the file must have.
        filled: columns that must not hold nulls, because the reader needs an earlier stage's work.

    Raises:
        SchemaError: no such file, other columns or types, or nulls in a column of `filled`.
    """
    path = folder if folder.suffix == ".parquet" else table_path(folder, kind)
    if not path.is_file():
        raise SchemaError(
            str(path),
            f"there is no table of {kind} here.",
            "Run the stage that writes it, or point to another folder.",
        )
    schema = SCHEMAS[kind]
    found = pq.read_schema(path)
    if missing := [name for name in schema.names if name not in found.names]:
        raise SchemaError(
            str(path),
            f"a table of {kind} needs the columns {', '.join(missing)}; "
            f"this file has {', '.join(found.names)}.",
            "Bring foreign files in with the stage 'ingest'.",
        )
    frame = pl.read_parquet(path, columns=schema.names)
    for name in filled:
        if empty := frame[name].null_count():
            raise SchemaError(
                str(path),
                f"{empty} of {len(frame)} rows have no '{name}'.",
                _STAGE_THAT_FILLS.get(name, "Fill the column before this stage."),
            )
    return frame


_STAGE_THAT_FILLS = {
    "status": "Run the stage 'grade' first.",
    "ppl": "Run the stage 'score' first.",
    "num_tokens": "Run the stage 'score' first.",
    "role": "Run the stage 'select' first.",
}


@dataclass
class Quarantine:
    """Rows a stage refused, each with a reason; written beside its table and counted in its log."""

    rows: list[dict[str, Any]]

    @classmethod
    def empty(cls) -> "Quarantine":
        """A quarantine without rows."""
        return cls([])

    def add(self, reason: str, row: object, detail: str = "") -> None:
        """Set `row` aside because of `reason` (a short phrase that counts are grouped by)."""
        self.rows.append({"reason": reason, "detail": detail, "row": repr(row)})

    def counts(self) -> dict[str, int]:
        """Number of rows by reason."""
        return dict(Counter(row["reason"] for row in self.rows))

    def write(self, folder: Path) -> None:
        """Write `quarantine.parquet` into `folder`, if there is anything to write."""
        if self.rows:
            with atomic_path(folder / QUARANTINE) as path:
                pq.write_table(pa.Table.from_pylist(self.rows), path)


def _as_arrow(rows: pl.DataFrame | Iterable[object], schema: pa.Schema, folder: Path) -> pa.Table:
    records = rows.to_dicts() if isinstance(rows, pl.DataFrame) else [_as_row(r) for r in rows]
    if extra := sorted({name for row in records for name in row} - set(schema.names)):
        raise SchemaError(
            str(folder),
            f"columns {', '.join(extra)} are not part of this table.",
            "Add them to schema/tables.py, with a new version, or leave them out.",
        )
    try:
        return pa.Table.from_pylist(records, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SchemaError(
            str(folder), f"values do not fit the schema: {error}.", "Mend the rows before writing."
        ) from error


def _as_row(record: object) -> dict[str, Any]:
    row = asdict(record)  # type: ignore[call-overload]
    if (problem_id := getattr(record, "problem_id", None)) is not None:
        row["problem_id"] = problem_id
    return row
