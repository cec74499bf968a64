"""How demonstrations become the model's own words, before a training or during one.

Source: "Mind the Gap: Data Rewriting for Stable Off-Policy Supervised Fine-Tuning" (arXiv
2509.15157), whose prompt is an image: this wording is our own.
"""

from typing import Literal

from pydantic import Field, field_validator

from megatron_reason.config.base import Strict
from megatron_reason.config.sampling import SamplingConfig

RETELL = (
    "Below are a math problem and a reference solution. Study the solution until you understand "
    "why every step holds. Then put it aside and solve the problem yourself, step by step and in "
    "your own words. Do not copy sentences from it and do not mention it. End with the final "
    "answer in \\boxed{{}}.\n\nProblem:\n{problem}\n\nReference solution:\n{solution}"
)
"""Digest and retell; `{problem}` and `{solution}` are filled in, `{{}}` is a pair of braces."""


class RewritingConfig(Strict):
    """How candidates are drawn, and which may be chosen."""

    sampling: SamplingConfig = SamplingConfig(samples_per_prompt=10, max_tokens=2048)
    """How candidates are drawn, alone and guided alike."""
    prompt: str = RETELL
    """Prompt of guided alignment, with the places `{problem}` and `{solution}`."""
    copies: Literal["report", "refuse"] = "report"
    """What to do with retellings that copy the reference: count them, or never choose them."""
    copy_threshold: float = Field(default=0.5, gt=0, le=1)
    """Share of a retelling's runs of eight words that stand in the reference, from which it is a
    copy."""
    refused_phrases: tuple[str, ...] = ("reference solution", "given solution")
    """Retellings with one of these phrases, in any case, are not chosen: they speak of their
    prompt."""

    @field_validator("prompt")
    @classmethod
    def _has_places(cls, prompt: str) -> str:
        try:
            filled = prompt.format(problem="\x01", solution="\x02")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"only {{problem}} and {{solution}} are places; write other braces twice ({error})"
            ) from error
        if "\x01" not in filled or "\x02" not in filled:
            raise ValueError("it must contain {problem} and {solution}")
        return prompt
