"""Rows of files in the shapes that reasoning data comes in, recognised by their columns.

    verl         prompt (messages), reward_model.ground_truth [target, data_source]
    messages     messages, the last one the assistant's [answer]
    prompt       prompt (text or messages), completion [answer]
    alpaca       instruction, output [input, answer]
    problem      problem, answer [solution]
    gsm8k        question, answer ("... #### N")

Columns in brackets are optional, as are `id`, `family`, `source` and `split` everywhere. Not here:
generators (`_reasoning_gym.py`) and what is done with bad rows (`ingest.py`).
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_reason.curation._entries import Entry, GivenResponse, RowError
from megatron_reason.errors import DataError
from megatron_reason.schema.addresses import files_at, open_binary
from megatron_reason.schema.records import Message, Problem
from megatron_reason.schema.tables import rows_per_batch

Row = Mapping[str, Any]
_ROWS_FOR_SHAPE = 1000
_ARROW_FILE = b"ARROW1"
_ARROW_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_HELD_OUT_SPLITS = ("heldout", "test", "validation")


@dataclass(frozen=True)
class Shape:
    """A recognised set of columns and how one row of it is read."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row, str], Entry]


class SourceRows:
    """Rows of one or several files, one after the other, with the place of each.

    Iterating gives (place, row), or (place, `RowError`) for a line that is no row. A place is
    "FILE:LINE" or "FILE row NUMBER".

    Args:
        source: a .jsonl, .json, .parquet or .arrow file, a folder of such files, or an
            address on the hub (`schema/addresses.py`).
        shapes: shapes it may have; the first whose columns all occur is taken.

    Raises:
        DataError: no such file, or no known format.
    """

    def __init__(self, source: str, shapes: Sequence[Shape] = ()) -> None:
        self.source = source
        self._files = files_at(source, _READERS)
        self.shape = _detect_shape(self._first_columns(), shapes or SHAPES, source)

    def __iter__(self) -> Iterator[tuple[str, Row | RowError]]:
        for file in self._files:
            name = file.rpartition("/")[2]
            yield from _READERS[PurePath(file).suffix](file, name)

    def _first_columns(self) -> set[str]:
        """Columns that occur in the first rows; single rows may still lack one."""
        found: set[str] = set()
        for _, row in islice(self, _ROWS_FOR_SHAPE):
            if not isinstance(row, RowError):
                found.update(row)
        return found


def _detect_shape(found: set[str], shapes: Sequence[Shape], source: str) -> Shape:
    for shape in shapes:
        if found.issuperset(shape.columns):
            return shape
    expected = "; ".join(f"{shape.name}: {', '.join(shape.columns)}" for shape in shapes)
    raise DataError(
        source,
        f"found the columns {', '.join(sorted(found)) or '(none)'}, which are no known shape. "
        f"Expected all columns of one of: {expected}.",
        "Rename the columns.",
    )


def _read_parquet(file: str, name: str) -> Iterator[tuple[str, Row | RowError]]:
    number = 0
    try:
        with open_binary(file) as stream, pq.ParquetFile(stream, buffer_size=1 << 20) as parquet:
            for group in range(parquet.num_row_groups):
                chunk = parquet.metadata.row_group(group)
                size = rows_per_batch(chunk.num_rows, chunk.total_byte_size)
                for batch in parquet.iter_batches(size, [group]):
                    for row in _rows_of(batch):
                        yield f"{name} row {number}", row
                        number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(file, "parquet", number, error) from error


def _read_arrow(file: str, name: str) -> Iterator[tuple[str, Row | RowError]]:
    """Rows of what `datasets` saves to a disk, Arrow's record batches, in a stream or a file."""
    number = 0
    try:
        with open_binary(file) as stream:
            for batch in _batches(stream):
                for row in _rows_of(batch):
                    yield f"{name} row {number}", row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, "Arrow", number, error) from error


def _batches(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    magic = stream.read(len(_ARROW_FILE))
    stream.seek(0)
    if magic != _ARROW_FILE:
        with pa.ipc.open_stream(stream) as batches:
            yield from batches
        _check_end(stream)
        return
    with pa.ipc.open_file(stream) as whole:
        for number in range(whole.num_record_batches):
            yield whole.get_batch(number)


def _check_end(stream: BinaryIO) -> None:
    """Refuse a stream that was cut between two batches, which reads like a whole one."""
    stream.seek(-len(_ARROW_END), os.SEEK_END)
    if stream.read(len(_ARROW_END)) != _ARROW_END:
        raise OSError("the end mark of Arrow streams is missing")


def _damaged(file: str, form: str, number: int, error: Exception) -> DataError:
    return DataError(
        file,
        f"cannot be read as {form} beyond row {number}: {error}.",
        "The file is cut short or damaged: get it again.",
    )


def _rows_of(batch: pa.RecordBatch) -> Iterator[Row | RowError]:
    """Rows of `batch`; one with a text that is not UTF-8 costs no other."""
    try:
        rows: list[Row] = batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            yield _decoded(batch.slice(number, 1))
    else:
        yield from rows


def _decoded(one: pa.RecordBatch) -> Row | RowError:
    row: dict[str, Any] = {}
    for name, column in zip(one.schema.names, one.columns, strict=True):
        try:
            row[name] = column[0].as_py()
        except UnicodeDecodeError as error:
            return RowError("not UTF-8", f"column '{name}': {error}: {error.object[:200]!r}")
    return row


def _read_json_lines(file: str, name: str) -> Iterator[tuple[str, Row | RowError]]:
    # In bytes: lines end at a line feed only, and one that is not UTF-8 costs no other.
    with open_binary(file) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = f"{name}:{number}"
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError as error:
                yield place, RowError("not UTF-8", f"{error}: {line[:200]!r}")
            except json.JSONDecodeError:
                yield place, RowError("not a JSON object", line[:200].decode())
            else:
                is_row = isinstance(row, dict)
                yield place, row if is_row else RowError("not a JSON object", repr(row)[:200])


def _read_json(file: str, name: str) -> Iterator[tuple[str, Row | RowError]]:
    try:
        with open_binary(file) as stream:
            content = json.loads(stream.read().decode())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            file, f"is not JSON: {error}.", "A file of one object a line is called .jsonl."
        ) from error
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DataError(file, "is not a list of objects.", "Write [{...}, {...}], or use .jsonl.")
    for number, row in enumerate(content):
        yield f"{name} row {number}", row


_READERS: Mapping[str, Callable[[str, str], Iterator[tuple[str, Row | RowError]]]] = {
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
}


def entry(
    row: Row, source: str, *, messages: tuple[Message, ...], answer: str, response: str | None
) -> Entry:
    """Entry of a row, with what may stand in any row: id, family, source, split."""
    if not any(turn.content.strip() for turn in messages if turn.role == "user"):
        raise RowError("empty problem")
    origin = str(row.get("source") or row.get("data_source") or source)
    problem = Problem(
        messages=messages,
        answer=answer.strip(),
        source=origin,
        family=text(row, "family"),
        split="heldout" if row.get("split") in _HELD_OUT_SPLITS else "train",
    )
    responses = () if response is None else (GivenResponse(response, origin),)
    return Entry(problem, responses, text(row, "id"))


def read_verl(row: Row, source: str) -> Entry:
    """Row as verl has it."""
    reward = row["reward_model"]
    if not isinstance(reward, Mapping) or reward.get("ground_truth") is None:
        raise RowError("no reward_model.ground_truth", repr(reward))
    target = row.get("target")
    return entry(
        row,
        source,
        messages=messages_of(row["prompt"]),
        answer=not_empty(str(reward["ground_truth"])),
        response=messages_of(target)[-1].content if target else None,
    )


def _read_messages(row: Row, source: str) -> Entry:
    turns = messages_of(row["messages"])
    if turns[-1].role != "assistant":
        raise RowError("last message is not the assistant's", turns[-1].role)
    return entry(
        row, source, messages=turns[:-1], answer=text(row, "answer"), response=turns[-1].content
    )


def _read_prompt(row: Row, source: str) -> Entry:
    completion = row["completion"]
    return entry(
        row,
        source,
        messages=messages_of(row["prompt"]),
        answer=text(row, "answer"),
        response=completion if isinstance(completion, str) else messages_of(completion)[-1].content,
    )


def _read_alpaca(row: Row, source: str) -> Entry:
    parts = (text(row, "instruction"), text(row, "input"))
    return entry(
        row,
        source,
        messages=(Message("user", "\n".join(part for part in parts if part.strip())),),
        answer=text(row, "answer"),
        response=text(row, "output"),
    )


def _read_problem(row: Row, source: str) -> Entry:
    return entry(
        row,
        source,
        messages=(Message("user", text(row, "problem")),),
        answer=not_empty(text(row, "answer")),
        response=text(row, "solution") if row.get("solution") is not None else None,
    )


def read_gsm8k(row: Row, source: str) -> Entry:
    """Row whose answer stands behind `####` at the end of the solution."""
    solution = text(row, "answer")
    _, mark, answer = solution.rpartition("####")
    if not mark:
        raise RowError("no '####' before the answer", solution[-80:])
    return entry(
        row,
        source,
        messages=(Message("user", text(row, "question")),),
        answer=not_empty(answer.replace(",", "")),
        response=solution,
    )


def text(row: Row, column: str) -> str:
    """Column as text; empty where it is missing."""
    value = row.get(column)
    return "" if value is None else str(value)


def not_empty(answer: str) -> str:
    """`answer`, where one must be known.

    Raises:
        RowError: it is empty.
    """
    if not answer.strip():
        raise RowError("empty answer")
    return answer


def messages_of(value: object) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", value),)
    if not isinstance(value, Sequence) or not value:
        raise RowError("empty problem", repr(value))
    return tuple(_turns(value))


def _turns(value: Sequence[Any]) -> Iterator[Message]:
    for turn in value:
        content = turn.get("content") if isinstance(turn, Mapping) else None
        if not isinstance(content, str):
            raise RowError("message without text", repr(turn))
        yield Message(str(turn["role"]) if "role" in turn else "user", content)


SHAPES = (
    Shape("verl", ("prompt", "reward_model"), read_verl),
    Shape("messages", ("messages",), _read_messages),
    Shape("prompt", ("prompt", "completion"), _read_prompt),
    Shape("alpaca", ("instruction", "output"), _read_alpaca),
    Shape("problem", ("problem", "answer"), _read_problem),
    Shape("gsm8k", ("question", "answer"), read_gsm8k),
)
