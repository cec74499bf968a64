"""The problems of a table by split: those that are learnt from, those that are only measured on.

Not here: which of them is answered next.
"""

from pathlib import Path

import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.schema.records import Message, Problem
from megatron_reason.schema.tables import Kind, read_table, table_path

_TRAIN, _HELDOUT = "train", "heldout"


def train_problems(folder: Path) -> list[Problem]:
    """Distinct problems of the train split in the problems or samples table of `folder`, in order.

    Raises:
        DataError: there are none.
    """
    has_problems = table_path(folder, Kind.PROBLEMS).is_file()
    rows = read_table(folder, Kind.PROBLEMS if has_problems else Kind.SAMPLES)
    distinct = rows.filter(pl.col("split") == _TRAIN).unique(
        "problem_id", keep="first", maintain_order=True
    )
    if distinct.is_empty():
        raise DataError(
            str(folder),
            f"it has {len(rows)} rows, none of the train split.",
            "Lower 'heldout_fraction' of the stage 'ingest'.",
        )
    return [
        Problem(
            messages=tuple(Message(**turn) for turn in row["messages"]),
            answer=row["answer"],
            source=row["source"],
            family=row["family"],
            split=row["split"],
        )
        for row in distinct.to_dicts()
    ]


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
