"""The problems of a table by split: those that are learnt from, those that are only measured on.

Not here: which of them is answered next.
"""

from pathlib import Path

import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.schema.records import Message, Problem
from megatron_reason.schema.tables import Kind, TableReader, read_table, table_path

_TRAIN, _HELDOUT = "train", "heldout"


def problem_table(folder: Path) -> TableReader:
    """The table of `folder` that has problems: of problems if there is one, else of samples."""
    has_problems = table_path(folder, Kind.PROBLEMS).is_file()
    return TableReader(folder, Kind.PROBLEMS if has_problems else Kind.SAMPLES)


def distinct_train(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    """First row of each problem of the train split; `name` is what an error calls the table.

    Raises:
        DataError: there are none.
    """
    distinct = rows.filter(pl.col("split") == _TRAIN).unique(
        "problem_id", keep="first", maintain_order=True
    )
    if distinct.is_empty():
        raise DataError(
            name,
            f"it has {len(rows)} rows, none of the train split.",
            "Lower 'heldout_fraction' of the stage 'ingest'.",
        )
    return distinct


def problems_of(rows: pl.DataFrame) -> list[Problem]:
    """The problem of each row."""
    return [
        Problem(
            messages=tuple(Message(**turn) for turn in row["messages"]),
            answer=row["answer"],
            source=row["source"],
            family=row["family"],
            split=row["split"],
        )
        for row in rows.to_dicts()
    ]


def train_problems(folder: Path) -> list[Problem]:
    """Distinct problems of the train split in the problems or samples table of `folder`, in order.

    Raises:
        DataError: there are none.
    """
    source = problem_table(folder)
    rows = pl.concat([source.empty(), *source.batches()])
    return problems_of(distinct_train(rows, str(folder)))


def heldout_problems(folder: Path) -> pl.DataFrame:
    """Held-out problems of the table in `folder`.

    Raises:
        DataError: there are none.
    """
    problems = read_table(folder, Kind.PROBLEMS)
    heldout = problems.filter(pl.col("split") == _HELDOUT)
    if heldout.is_empty():
        raise DataError(
            str(folder),
            f"none of its {len(problems)} problems is held out, so nothing can be measured.",
            "Set 'heldout_fraction' of the stage 'ingest' above 0.",
        )
    return heldout
