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
    num_bytes = source.num_bytes * len(positions) // max(source.num_rows, 1)
    # Chosen rows are often longer than the mean; more sheets than needed cost little.
    per_sheet = max(rows_per_batch(len(positions), 4 * num_bytes), len(positions) // _MOST_SHEETS)
    num_sheets = -(-len(positions) // per_sheet) if len(positions) else 0
    with TemporaryDirectory(dir=folder, prefix=".rows.") as scratch:
        sheets = [Path(scratch, str(sheet)) for sheet in range(num_sheets)]
        places: list[list[NDArray[np.integer]]] = [[] for _ in sheets]
        with ExitStack() as stack:
            writers = [stack.enter_context(TableWriter(s, Kind.SAMPLES)) for s in sheets]
            for rows, where in _chosen(source, positions):
                for sheet in np.unique(where // per_sheet):
                    mine = where // per_sheet == sheet
                    writers[sheet].append(rows.filter(mine))
                    places[sheet].append(where[mine])
        for sheet, where in zip(sheets, places, strict=True):
            rows = pl.concat(list(TableReader(sheet, Kind.SAMPLES).batches()))
            yield rows[np.argsort(np.concatenate(where))]


def _chosen(
    source: TableReader, positions: NDArray[np.integer]
) -> Iterator[tuple[pl.DataFrame, NDArray[np.integer]]]:
    """Rows at `positions` in the order of the table, with their places in the result.

    They come in batches, however few of them a batch of the table holds: every append to a file is
    a row group, and an open file keeps some 20 kB of memory for each.
    """
    order = np.argsort(positions, kind="stable")
    ascending = positions[order]
    waiting: list[pl.DataFrame] = []
    first = begin = num_bytes = 0
    for batch in source.batches():
        low, high = np.searchsorted(ascending, (first, first + len(batch)))
        if low < high:
            # By way of Arrow, because rows of polars would keep all texts of the batch in memory.
            waiting.append(pl.DataFrame(batch[ascending[low:high] - first].to_arrow()))
            num_bytes += waiting[-1].estimated_size()
            if rows_per_batch(high - begin, int(num_bytes)) < high - begin:
                yield pl.concat(waiting), order[begin:high]
                waiting, begin, num_bytes = [], high, 0
        first += len(batch)
    if waiting:
        yield pl.concat(waiting), order[begin:]
