"""OpenR1-Math-220k: problems with two to four DeepSeek-R1 traces each, and who verified them.

Source: open-r1/OpenR1-Math-220k, default subset. LESE keeps what Math-Verify accepted, without
hyperlinks and without Chinese mixed into English, up to 8192 tokens, about 30,000 problems. Here:
complete traces that Math-Verify accepted; a problem with none is set aside. The other filters are
those of the stage `filter` (`refuse: [hyperlink, mixed_languages]`, `max_tokens: 8192`).
"""

from dataclasses import replace

from megatron_reason.curation._entries import Entry, GivenResponse, RowError
from megatron_reason.curation._readers import Row, entry, not_empty, text
from megatron_reason.curation.datasets.base import Dataset, dataset, list_of
from megatron_reason.schema.records import Message

_COMPLETE = "is_reasoning_complete"


def _read(row: Row, name: str) -> Entry:
    traces = list_of(str, row, "generations")
    verified = list_of(bool, row, "correctness_math_verify")
    complete = [True] * len(traces)
    if row.get(_COMPLETE) is not None:
        complete = list_of(bool, row, _COMPLETE)
    if not len(traces) == len(complete) == len(verified):
        raise RowError(
            "lists of different lengths",
            f"{len(traces)} generations, {len(complete)} {_COMPLETE}, "
            f"{len(verified)} correctness_math_verify",
        )
    kept = [t for t, c, v in zip(traces, complete, verified, strict=True) if c and v]
    if not kept:
        raise RowError("no verified generation", f"{len(traces)} generations")
    problem = entry(
        {**row, "id": row.get("uuid"), "family": row.get("problem_type"), "source": name},
        name,
        messages=(Message("user", text(row, "problem")),),
        answer=not_empty(text(row, "answer")),
        response=None,
    )
    return replace(problem, responses=tuple(GivenResponse(trace, "deepseek-r1") for trace in kept))


dataset(
    Dataset(
        name="openr1_math_220k",
        hub="hf://datasets/open-r1/OpenR1-Math-220k/data/train-*.parquet",
        columns=("problem", "answer", "generations", "correctness_math_verify"),
        read=_read,
    )
)
