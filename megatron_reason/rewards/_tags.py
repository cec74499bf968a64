"""Reasoning tags of a response: where they stand, how often, and what is between them.

Plain string work, linear in the response. Not here: whether an answer is right.
"""

THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"
IN_ORDER = (THINK, END_THINK, ANSWER, END_ANSWER)


def between(text: str, opening: str, closing: str) -> str | None:
    """Text between the first `opening` and the first `closing` after it; None without both."""
    _, found, rest = text.partition(opening)
    inside, closed, _ = rest.partition(closing)
    return inside if found and closed else None
