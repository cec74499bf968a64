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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from megatron_reason.curation._entries import Entry, GivenResponse, RowError
from megatron_reason.errors import DataError
from megatron_reason.schema.records import Message, Problem

Row = Mapping[str, Any]
_HELD_OUT_SPLITS = ("heldout", "test", "validation")


@dataclass(frozen=True)
class Shape:
    """A recognised set of columns and how one row of it is read."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row, str], Entry]


def read_file_rows(source: str) -> tuple[list[Row], list[str]]:
    """Rows of a .jsonl, .json or .parquet file, and the lines that are no JSON objects.

    Args:
        source: path, or an `hf://datasets/OWNER/NAME/FILE.parquet` address.

    Raises:
        DataError: no such file, or no known format.
    """
    path = Path(source)
    remote = source.startswith("hf://")
    if not remote and not path.is_file():
        raise DataError(source, "there is no such file.", "Check 'source' of the stage 'ingest'.")
    match path.suffix:
        case ".parquet":
            return _read_parquet(source), []
        case ".jsonl":
            return _read_json_lines(path)
        case ".json":
            return _read_json(path), []
        case _:
            raise DataError(
                source,
                f"'{path.suffix}' is no known format.",
                "Use a .jsonl, .json or .parquet file, or reasoning_gym:NAME.",
            )


def detect_shape(rows: Sequence[Row], source: str) -> Shape:
    """Shape whose columns all occur in `rows`; single rows may still lack one.

    Raises:
        DataError: no shape fits; the message names the columns found and expected.
    """
    found = set[str]().union(*rows)
    for shape in SHAPES:
        if found.issuperset(shape.columns):
            return shape
    expected = "; ".join(f"{shape.name}: {', '.join(shape.columns)}" for shape in SHAPES)
    raise DataError(
        source,
        f"found the columns {', '.join(sorted(found)) or '(none)'}, which are no known shape. "
        f"Expected all columns of one of: {expected}.",
        "Rename the columns.",
    )


def _read_parquet(source: str) -> list[Row]:
    try:
        return list(pl.read_parquet(source).to_dicts())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            source, f"cannot be read as parquet: {error}.", "Check the file or the address."
        ) from error


def _read_json_lines(path: Path) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    broken: list[str] = []
    # newline="\n": a text may hold a raw U+2028 or \r, which end no line of JSON.
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if isinstance(row, dict):
                rows.append(row)
            else:
                broken.append(line)
    return rows, broken


def _read_json(path: Path) -> list[Row]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(
            str(path), f"is not JSON: {error}.", "A file of one object a line is called .jsonl."
        ) from error
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DataError(
            str(path), "is not a list of objects.", "Write [{...}, {...}], or use .jsonl."
        )
    return content


def _entry(
    row: Row, source: str, *, messages: tuple[Message, ...], answer: str, response: str | None
) -> Entry:
    if not any(turn.content.strip() for turn in messages if turn.role == "user"):
        raise RowError("empty problem")
    origin = str(row.get("source") or row.get("data_source") or source)
    problem = Problem(
        messages=messages,
        answer=answer.strip(),
        source=origin,
        family=str(row.get("family") or ""),
        split="heldout" if row.get("split") in _HELD_OUT_SPLITS else "train",
    )
    responses = () if response is None else (GivenResponse(response, origin),)
    return Entry(problem, responses, str(row.get("id") or ""))


def _read_verl(row: Row, source: str) -> Entry:
    reward = row["reward_model"]
    if not isinstance(reward, Mapping) or reward.get("ground_truth") is None:
        raise RowError("no reward_model.ground_truth", repr(reward))
    target = row.get("target")
    return _entry(
        row,
        source,
        messages=_messages(row["prompt"]),
        answer=str(reward["ground_truth"]),
        response=_messages(target)[-1].content if target else None,
    )


def _read_messages(row: Row, source: str) -> Entry:
    turns = _messages(row["messages"])
    if turns[-1].role != "assistant":
        raise RowError("last message is not the assistant's", turns[-1].role)
    return _entry(
        row, source, messages=turns[:-1], answer=_text(row, "answer"), response=turns[-1].content
    )


def _read_prompt(row: Row, source: str) -> Entry:
    completion = row["completion"]
    return _entry(
        row,
        source,
        messages=_messages(row["prompt"]),
        answer=_text(row, "answer"),
        response=completion if isinstance(completion, str) else _messages(completion)[-1].content,
    )


def _read_alpaca(row: Row, source: str) -> Entry:
    parts = (_text(row, "instruction"), _text(row, "input"))
    return _entry(
        row,
        source,
        messages=(Message("user", "\n".join(part for part in parts if part.strip())),),
        answer=_text(row, "answer"),
        response=_text(row, "output"),
    )


def _read_problem(row: Row, source: str) -> Entry:
    if not _text(row, "answer").strip():
        raise RowError("empty answer")
    return _entry(
        row,
        source,
        messages=(Message("user", _text(row, "problem")),),
        answer=_text(row, "answer"),
        response=_text(row, "solution") if row.get("solution") is not None else None,
    )


def _read_gsm8k(row: Row, source: str) -> Entry:
    solution = _text(row, "answer")
    _, mark, answer = solution.rpartition("####")
    if not mark:
        raise RowError("no '####' before the answer", solution[-80:])
    return _entry(
        row,
        source,
        messages=(Message("user", _text(row, "question")),),
        answer=answer.replace(",", ""),
        response=solution,
    )


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value)


def _messages(value: object) -> tuple[Message, ...]:
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
    Shape("verl", ("prompt", "reward_model"), _read_verl),
    Shape("messages", ("messages",), _read_messages),
    Shape("prompt", ("prompt", "completion"), _read_prompt),
    Shape("alpaca", ("instruction", "output"), _read_alpaca),
    Shape("problem", ("problem", "answer"), _read_problem),
    Shape("gsm8k", ("question", "answer"), _read_gsm8k),
)
