"""AceReason-1.1-SFT: DeepSeek-R1 traces to math and code prompts, as its authors published them.

Source: nvidia/AceReason-1.1-SFT, rows {category, source, input, output}. Only `category: math` is
taken. The set has no answers, so that its traces cannot be verified: OXA's regrouped copy has them
(`oxa_acereason_math`). A row is one trace; rows with the same input are one problem.
"""

from megatron_reason.curation._entries import Entry, RowError
from megatron_reason.curation._readers import Row, entry, text
from megatron_reason.curation.datasets.base import Dataset, dataset
from megatron_reason.schema.records import Message


def _read(row: Row, name: str) -> Entry:
    if text(row, "category").lower() != "math":
        raise RowError("not mathematics", text(row, "category"))
    return entry(
        {"source": name, "family": row.get("source")},
        name,
        messages=(Message("user", text(row, "input")),),
        answer="",
        response=text(row, "output"),
    )


dataset(
    Dataset(
        name="acereason_sft",
        hub="hf://datasets/nvidia/AceReason-1.1-SFT/**/*.arrow",
        columns=("category", "input", "output"),
        read=_read,
    )
)
