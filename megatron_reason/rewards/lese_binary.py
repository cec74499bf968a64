"""Reward `lese_binary`: as `lese`, with a format that is right as a whole or not at all.

Source: LESE (anonymous submission) figure 3 (its ablation). Not here: the parts (`_lese.py`).
"""

from megatron_reason.rewards._lese import binary_format, total
from megatron_reason.rewards.base import reward
from megatron_reason.schema.records import Verdict


@reward("lese_binary")
def grade_format_whole(response: str, answer: str) -> Verdict:
    """Total reward in [0, 3.1]; the status says whether the final answer is right."""
    return total(response, answer, binary_format(response))
