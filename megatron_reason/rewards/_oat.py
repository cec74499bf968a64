r"""Equality of answers as Oat's grader has it: DeepScaleR's with units removed, then math-verify.

Source: the grader of "Understanding R1-Zero-like training" (arXiv 2503.20783), in its slow mode,
which LUFFY's evaluation uses. Its time limits of a second rest on signals and are left out: the
pool has a deadline. Not here: where an answer stands.
"""

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from math_verify.errors import TimeoutException
from sympy import Basic, MatrixBase

from megatron_reason.rewards import _mathd, _prm800k
from megatron_reason.rewards._units import without_trailing_text, without_units

_LONG = 128
_REPEATED = 0.2


def equal(stated: str, gold: str) -> bool:
    """Whether two bare answers are equal."""
    if normal(stated) == normal(gold) or _prm800k.equal(stated, gold):
        return True
    if any(len(text) > _LONG and is_repetitive(text) for text in (stated, gold)):
        return False
    try:
        return bool(verify(_parse(gold), _parse(stated), timeout_seconds=None))
    except TimeoutException:
        return False


def normal(answer: str) -> str:
    """Normal form of MATH's answers, without units and with matrices of one kind."""
    return _mathd.normal(answer, _without_units)


def is_repetitive(text: str) -> bool:
    """Whether much of `text` occurs in it elsewhere, too: of all its substrings a fifth or more.

    The released grader adds up the longest common prefixes of neighbours among the sorted suffixes,
    which is how many of the substrings are not the first of their kind.
    """
    substrings = len(text) * (len(text) + 1) // 2
    return (substrings - _distinct(text)) / max(substrings, 1) > _REPEATED


def _distinct(text: str) -> int:
    """Number of different substrings that are not empty, from the suffix automaton of `text`."""
    lengths, links, steps = [0], [-1], [dict[str, int]()]
    count = last = 0
    for character in text:
        new, at = len(lengths), last
        lengths.append(lengths[last] + 1)
        links.append(0)
        steps.append({})
        while at != -1 and character not in steps[at]:
            steps[at][character] = new
            at = links[at]
        if at != -1:
            links[new] = target = steps[at][character]
            if lengths[target] != lengths[at] + 1:
                links[new] = clone = len(lengths)
                lengths.append(lengths[at] + 1)
                links.append(links[target])
                steps.append(dict(steps[target]))
                links[target] = clone
                while at != -1 and steps[at].get(character) == target:
                    steps[at][character] = clone
                    at = links[at]
        count += lengths[new] - lengths[links[new]]
        last = new
    return count


def _without_units(text: str) -> str:
    return without_units(without_trailing_text(_mathd.with_one_spelling(text)))


def _parse(answer: str) -> list[Basic | MatrixBase | str]:
    return parse(
        answer if "$" in answer else f"${answer}$",
        extraction_config=(LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()),
        fallback_mode="no_fallback",
        extraction_mode="any_match",
        parsing_timeout=0,
    )
