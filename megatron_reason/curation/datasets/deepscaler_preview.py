"""DeepScaleR-Preview: 40,000 competition problems with answers, for reinforcement learning.

Source: agentica-org/DeepScaleR-Preview-Dataset. OXA answers each 8 times and keeps problems solved
2 to 6 times: stages `generate`, `grade` and `filter` with `pass_rate: [0.2, 0.8]`. Some rows have
no solution (an empty text), and then no response.
"""

from megatron_reason.curation._entries import Entry
from megatron_reason.curation._readers import Row, entry, not_empty, text
from megatron_reason.curation.datasets.base import Dataset, dataset
from megatron_reason.schema.records import Message


def _read(row: Row, name: str) -> Entry:
    return entry(
        {**row, "source": name},
        name,
        messages=(Message("user", text(row, "problem")),),
        answer=not_empty(text(row, "answer")),
        response=text(row, "solution").strip() or None,
    )


dataset(
    Dataset(
        name="deepscaler_preview",
        hub="hf://datasets/agentica-org/DeepScaleR-Preview-Dataset/**",
        columns=("problem", "answer"),
        read=_read,
    )
)
