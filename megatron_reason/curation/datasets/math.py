"""MATH: competition problems with worked solutions, the answer in the solution's last box.

Source: hendrycks MATH, train split of all subjects; `type` (subject) becomes the family.
"""

from megatron_reason.curation._entries import Entry
from megatron_reason.curation._readers import Row, entry, text
from megatron_reason.curation.datasets.base import Dataset, boxed_answer, dataset
from megatron_reason.schema.records import Message


def _read(row: Row, name: str) -> Entry:
    solution = text(row, "solution")
    return entry(
        {**row, "family": row.get("type"), "source": name},
        name,
        messages=(Message("user", text(row, "problem")),),
        answer=boxed_answer(solution),
        response=solution,
    )


dataset(
    Dataset(
        name="math",
        hub="hf://datasets/EleutherAI/hendrycks_math/*/train-*.parquet",
        columns=("problem", "solution", "type"),
        read=_read,
    )
)
