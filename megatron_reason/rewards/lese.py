"""Reward `lese`: right answer, its place and fine-grained format, 3.1 in all.

Source: LESE (anonymous submission) section 4, figure 3 (its default). Not here: the parts
(`_lese.py`) and what becomes of them (`methods/lese.py`).
"""

from megatron_reason.rewards._lese import fine_format, total
from megatron_reason.rewards.base import reward
from megatron_reason.schema.records import Verdict


@reward("lese")
def grade_finely(response: str, answer: str) -> Verdict:
    """Total reward in [0, 3.1]; the status says whether the final answer is right."""
    return total(response, answer, fine_format(response))
