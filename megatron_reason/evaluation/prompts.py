"""Held-out problems as token ids, all of which an engine can answer.

A problem that does not fit would change what a table measures if it were left out, so it stops the
measurement before the first answer. Not here: training prompts, which are set aside instead
(`rollout/prompts.py`, `curation/generate.py`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.schema.records import Message

if TYPE_CHECKING:
    from megatron_reason.generation.templates import Template

_NAMED = 3


def prompts_of(
    problems: pl.DataFrame, template: "Template", *, max_model_len: int, place: str
) -> Mapping[str, Sequence[int]]:
    """Token ids of each problem, by its id.

    Args:
        problems: rows of `Kind.PROBLEMS`.
        template: how they become prompts.
        max_model_len: most tokens of prompt and answer together.
        place: what is measured, for the error message.

    Raises:
        DataError: prompts that leave no room for an answer.
    """
    prompts = {
        row["problem_id"]: template.prompt_ids([Message(**turn) for turn in row["messages"]])
        for row in problems.to_dicts()
    }
    too_long = {name: len(ids) for name, ids in prompts.items() if len(ids) >= max_model_len}
    if too_long:
        first = ", ".join(f"{name} ({size} tokens)" for name, size in [*too_long.items()][:_NAMED])
        raise DataError(
            place,
            f"{len(too_long)} of {len(prompts)} problems leave no room for an answer, the first of "
            f"them {first}: prompt and answer together may have {max_model_len} tokens.",
            "Raise engine.max_model_len, or leave these problems out of what is measured.",
        )
    return prompts
