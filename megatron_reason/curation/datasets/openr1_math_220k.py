"""OpenR1-Math-220k: problems with two to four DeepSeek-R1 traces each, and who verified them.

Source: open-r1/OpenR1-Math-220k, default subset. LESE keeps what Math-Verify accepted, without
hyperlinks and without Chinese mixed into English, up to 8192 tokens, about 30,000 problems. Here:
complete traces that Math-Verify accepted; a problem with none is set aside. The other filters are
those of the stage `filter` (`refuse: [hyperlink, mixed_languages]`, `max_tokens: 8192`).
"""

from dataclasses import replace

from megatron_reason.curation._entries import Entry, GivenResponse, RowError
from megatron_reason.curation._readers import Row, entry, text
from megatron_reason.curation.datasets.base import Dataset, dataset
from megatron_reason.schema.records import Message


def _read(row: Row, name: str) -> Entry:
    answer = text(row, "answer")
    if not answer.strip():
        raise RowError("empty answer")
    traces = list(row["generations"])
    complete = row.get("is_reasoning_complete") or [True] * len(traces)
    verified = row["correctness_math_verify"]
    if not len(traces) == len(complete) == len(verified):
        raise RowError(
            "lists of different lengths",
            f"{len(traces)} generations, {len(complete)} is_reasoning_complete, "
            f"{len(verified)} correctness_math_verify",
        )
    kept = [t for t, c, v in zip(traces, complete, verified, strict=True) if c and v]
    if not kept:
        raise RowError("no verified generation", f"{len(traces)} generations")
    problem = entry(
        {**row, "id": row.get("uuid"), "family": row.get("problem_type"), "source": name},
        name,
        messages=(Message("user", text(row, "problem")),),
        answer=answer,
        response=None,
    )
    return replace(problem, responses=tuple(GivenResponse(trace, "deepseek-r1") for trace in kept))


dataset(
    Dataset(
        name="openr1_math_220k",
        hub="hf://datasets/open-r1/OpenR1-Math-220k/data/train-*.parquet",
        columns=("problem", "answer", "generations", "correctness_math_verify"),
        read=_read,
        template="model",
    )
)
