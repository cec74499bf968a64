"""Overlap with a reference, and words that give a prompt away."""

import pytest

from megatron_reason.config.rewriting import RETELL
from megatron_reason.curation._rewriting import mentions, verbatim_overlap

REFERENCE = "a b c d e f g h i j"


@pytest.mark.parametrize(
    ("text", "overlap"),
    [
        (REFERENCE, 1.0),
        (REFERENCE.upper(), 1.0),
        ("a b c d e f g h and now something else of my own", 1 / 8),
        ("j i h g f e d c b a", 0.0),
        ("a b c", 0.0),
        ("", 0.0),
    ],
)
def test_verbatim_overlap(text, overlap):
    assert verbatim_overlap(text, REFERENCE) == pytest.approx(overlap)


def test_mentions():
    assert mentions("By the REFERENCE Solution", ("reference solution",))
    assert not mentions("By the solution", ("reference solution",))


def test_the_prompt_has_its_places():
    filled = RETELL.format(problem="P", solution="S")
    assert filled.endswith("Problem:\nP\n\nReference solution:\nS")
    assert "\\boxed{}" in filled
