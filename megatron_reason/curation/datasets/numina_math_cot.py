r"""NuminaMath-CoT: 860,000 problems with solutions of people and models, without separate answers.

Source: AI-MO/NuminaMath-CoT, train. Data Rewriting (arXiv 2509.15157) takes 50,000 of them at
random and drops those whose prompt and solution are longer than its context (2048 tokens, by the
counts); set that with `filter` and `mix`. The answer is the solution's last `\boxed{}`; rows
without one (proofs, mostly) cannot be verified and are set aside.
"""

from megatron_reason.curation._entries import Entry
from megatron_reason.curation._readers import Row, entry, text
from megatron_reason.curation.datasets.base import Dataset, boxed_answer, dataset
from megatron_reason.schema.records import Message


def _read(row: Row, name: str) -> Entry:
    solution = text(row, "solution")
    return entry(
        {**row, "source": name},
        name,
        messages=(Message("user", text(row, "problem")),),
        answer=boxed_answer(solution),
        response=solution,
    )


dataset(
    Dataset(
        name="numina_math_cot",
        hub="hf://datasets/AI-MO/NuminaMath-CoT/data/train-*.parquet",
        columns=("source", "problem", "solution"),
        read=_read,
    )
)
