"""Chosen rows of a large table in a chosen order, without holding them all in memory.

Not here: which rows are chosen (`select.py`).
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megatron_reason.schema.tables import Kind, TableReader, TableWriter, rows_per_batch

_MOST_SHEETS = 64


def rows_at(
    source: TableReader, positions: NDArray[np.integer], folder: Path
) -> Iterator[pl.DataFrame]:
    """Rows of `source` at `positions`, in that order; a position may occur more than once.

    One pass over the table deals the rows out to files by their place in the result, each small
    enough to be put in order in memory. A result that is small as a whole needs no files.

    Args:
        source: a table of samples.
        positions: indices of rows.
        folder: where the files may lie for a while.
    """
    order = np.argsort(positions, kind="stable")
    ascending = positions[order]
    num_bytes = source.num_bytes * len(positions) // max(source.num_rows, 1)
    # Chosen rows are often longer than the mean; more sheets than needed cost little.
    per_sheet = max(rows_per_batch(len(positions), 4 * num_bytes), len(positions) // _MOST_SHEETS)
    num_sheets = -(-len(positions) // per_sheet) if len(positions) else 0
    with TemporaryDirectory(dir=folder, prefix=".rows.") as scratch:
        sheets = [Path(scratch, str(sheet)) for sheet in range(num_sheets)]
        places: list[list[NDArray[np.integer]]] = [[] for _ in sheets]
        with ExitStack() as stack:
            writers = [stack.enter_context(TableWriter(s, Kind.SAMPLES)) for s in sheets]
            first = 0
            for batch in source.batches():
                low, high = np.searchsorted(ascending, (first, first + len(batch)))
                here, where = ascending[low:high] - first, order[low:high]
                first += len(batch)
                for sheet in np.unique(where // per_sheet):
                    mine = where // per_sheet == sheet
                    writers[sheet].append(batch[here[mine]])
                    places[sheet].append(where[mine])
        for sheet, where in zip(sheets, places, strict=True):
            rows = pl.concat(list(TableReader(sheet, Kind.SAMPLES).batches()))
            yield rows[np.argsort(np.concatenate(where))]
