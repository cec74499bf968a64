r"""Words of units that the graders of Oat and of Qwen2.5-Math remove from answers.

Source: the list both took over from MathQA's units, in its order, as their released code has it.
It holds single letters and everyday words: `5 a` becomes `5`, and so does `5 more`. Not here: our
own reading of answers, which leaves words alone (`math_verify.py`).
"""

import re

_WORDS = (
    "east|degree|mph|kmph|ft|m sqaure| m east|sq m|deg|mile|q .|monkey|prime|ratio|profit of rs|rd|"
    "o|gm|p . m|lb|tile|per|dm|lt|gain|ab|way|west|a .|b .|c .|d .|e .|f .|g .|h .|t|a|h|no change|"
    "men|soldier|pie|bc|excess|st|inches|noon|percent|by|gal|kmh|c|acre|rise|a . m|th|π r 2|sq|"
    "mark|l|toy|coin|sq . m|gallon|° f|profit|minw|yr|women|feet|am|pm|hr|cu cm|square|v â € ™|are|"
    "rupee|rounds|cubic|cc|mtr|s|ohm|number|day|hour|minute|min|second|man|woman|sec|cube|mt|"
    "sq inch|mp|∏ cm ³|hectare|more|unit|cu . m|cm 2|rs .|rs|kg|g|month|km|m|cm|mm|apple|liter|"
    "loss|yard|pure|year|increase|decrease|d|less|Surface|litre|pi sq m|s .|metre|meter|inch"
)
_UNITS = [
    # A point stands for any character, as in the original.
    (word if "." not in word else "", re.compile(rf"(^|\W){word}($|\W)"))
    for ending in ("", "s")
    for word in (word + ending for word in _WORDS.split("|"))
]
_TRAILING_TEXT = re.compile(r"\\text{.*?}$")


def without_trailing_text(answer: str) -> str:
    r"""`answer` without a `\text{...}` at its end, unless nothing else is in it."""
    rest = _TRAILING_TEXT.sub("", answer).strip()
    return rest or answer


def without_units(answer: str) -> str:
    """`answer` without words of units, unless nothing would be left."""
    for _ in range(2):
        for word, pattern in _UNITS:
            if word in answer:
                answer = pattern.sub(r"\1\2", answer) or answer
    return answer
