"""Flaws of texts: web addresses and mixed languages."""

import pytest

from megatron_reason.curation._texts import text_objection

BOTH = ("hyperlink", "mixed_languages")


@pytest.mark.parametrize(
    ("text", "objection"),
    [
        ("See https://example.org for it.", "hyperlink"),
        ("See www.example.org.", "hyperlink"),
        ("See [this](http://a.b).", "hyperlink"),
        ("The ratio a:b is http-like.", None),
        ("So we get 因此 the answer.", "mixed languages"),
        (r"因此 $x = \frac{1}{2}$。", None),
        ("<think>\n因此</think><answer>二</answer>", None),
        ("<think>因此 so</think>", "mixed languages"),
        ("Nothing but English.", None),
    ],
)
def test_objection(text, objection):
    assert text_objection(text, BOTH) == objection
    assert text_objection(text, ()) is None
