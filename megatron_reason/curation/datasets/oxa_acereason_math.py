"""OXA-AceReason-1.1-Math: the math part of AceReason-1.1-SFT regrouped by problem, with answers.

Source: takagi97/OXA-AceReason-1.1-Math, rows {uuid, query, gt, DeepSeek-R1_Response_List} as the
released scripts of OXA (arXiv 2603.16206) read them; 2.6 million traces, of which about 2 million
are verified: that is the stage `grade`. Set `solutions_per_problem` high enough to keep them all.
"""

from dataclasses import replace

from megatron_reason.curation._entries import Entry, GivenResponse
from megatron_reason.curation._readers import Row, entry, not_empty, text
from megatron_reason.curation.datasets.base import Dataset, dataset, list_of
from megatron_reason.schema.records import Message

_TRACES = "DeepSeek-R1_Response_List"


def _read(row: Row, name: str) -> Entry:
    problem = entry(
        {"id": row.get("uuid"), "source": name},
        name,
        messages=(Message("user", text(row, "query")),),
        answer=not_empty(text(row, "gt")),
        response=None,
    )
    traces = list_of(str, row, _TRACES)
    return replace(problem, responses=tuple(GivenResponse(t, "deepseek-r1") for t in traces))


dataset(
    Dataset(
        name="oxa_acereason_math",
        hub="hf://datasets/takagi97/OXA-AceReason-1.1-Math/**",
        columns=("query", "gt", _TRACES),
        read=_read,
    )
)
