"""What a public data set is: its address, the columns it must have, and how a row becomes an entry.

A module of this room registers its `Dataset`; it is read from the hub or from a local copy. Filters
that a paper states for it and that one row shows (category, verified or not) are part of reading:
rows they drop are quarantined, each with its reason. Filters that need a verdict or a tokenizer are
stages. Not here: any data set, and the files' formats (`_readers.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from megatron_reason.curation._entries import Entry, RowError
from megatron_reason.curation._readers import Row, Shape, SourceRows, not_empty
from megatron_reason.registry import Registry
from megatron_reason.rewards.stated import boxes_of

DATASETS: Registry["Dataset"] = Registry("data set", "megatron_reason.curation.datasets")
HUB = "hub"
_T = TypeVar("_T", str, bool)


@dataclass(frozen=True)
class Dataset:
    """A public data set."""

    name: str
    hub: str
    """Files of its training split on the hub, `hf://datasets/...`, `*` for any characters."""
    columns: tuple[str, ...]
    """Columns without which a row cannot be read."""
    read: Callable[[Row, str], Entry]
    """(row, name) -> entry; raises `RowError` for a row that its filters drop."""


def dataset(entry: Dataset) -> Dataset:
    """Register a data set under its name."""
    return DATASETS.register(entry.name)(entry)


def open_source(source: str, name: str | None) -> SourceRows:
    """Rows of a data set: `source` is its copy, or `hub`; without a name, the columns decide.

    Raises:
        ConfigError: no such data set.
        DataError: no such file, or other columns than the data set has.
    """
    if name is None:
        return SourceRows(source)
    known = DATASETS.get(name, "stage 'ingest' dataset")
    shape = Shape(known.name, known.columns, known.read)
    return SourceRows(known.hub if source == HUB else source, (shape,))


def list_of(kind: type[_T], row: Row, column: str) -> list[_T]:
    """Column that holds a list of `kind`.

    Raises:
        RowError: it is absent or no list, or one of its values is of another kind.
    """
    values = row.get(column)
    if not isinstance(values, list):
        raise RowError("malformed list", f"column '{column}': {values!r:.80}")
    for index, value in enumerate(values):
        if not isinstance(value, kind):
            raise RowError("malformed list", f"column '{column}', number {index}: {value!r:.80}")
    return values


def boxed_answer(solution: str) -> str:
    r"""Content of the last `\boxed{}` of a worked solution.

    Raises:
        RowError: the solution has none, or an empty one.
    """
    boxes = boxes_of(solution)
    if not boxes:
        raise RowError("no boxed answer in the solution", solution[-80:])
    return not_empty(boxes[0].content)
