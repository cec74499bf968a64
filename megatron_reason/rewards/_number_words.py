"""Numbers spelled out in English, as Qwen2.5-Math's harness reads them.

The harness asks the package word2number; these are its rules, but that nothing is added twice, as
it does in "six billion nine thousand". Words that are no numbers are passed over: "five more" is 5.
Not here: what else becomes of an answer (`_qwen_normal.py`).
"""

_TO_NINETEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_HUNDRED = 100
_SCALES = {"billion": 10**9, "million": 10**6, "thousand": 10**3}
_SMALL = (
    {word: value for value, word in enumerate(_TO_NINETEEN.split())}
    | {word: 10 * value for value, word in enumerate(_TENS.split(), start=2)}
    | {"hundred": _HUNDRED}
)
_POINT = "point"


def spelled_number(text: str) -> float | None:
    """The number that the words of `text` spell; None without such words, or if they spell none."""
    spoken = text.replace("-", " ").lower().split()
    words = [word for word in spoken if word in _SMALL or word in _SCALES or word == _POINT]
    if not words or any(words.count(word) > 1 for word in (*_SCALES, _POINT)):
        return None
    end = words.index(_POINT) if _POINT in words else len(words)
    whole = _whole(words[:end])
    return None if whole is None else whole + _decimals(words[end + 1 :])


def _whole(words: list[str]) -> int | None:
    if len(words) == 1:
        return (_SMALL | _SCALES)[words[0]]
    total = 0
    for scale, value in _SCALES.items():
        if scale in words:
            place = words.index(scale)
            if any(other in words[:place] for other in _SCALES):
                return None
            if place == 0:
                return None
            total, words = total + _group(words[:place]) * value, words[place + 1 :]
    if any(word in _SCALES for word in words):
        return None
    return total + _group(words)


def _group(words: list[str]) -> int:
    """At most four words below a thousand: "two hundred forty one"; 0 without any."""
    values = [_SMALL[word] for word in words]
    match values:
        case [first, second] if _HUNDRED not in values:
            return first + second
        case [first, second] | [first, second, _] | [first, second, _, _]:
            return first * second + sum(values[2:])
        case [first, *_]:
            return first
        case _:
            return 0


def _decimals(words: list[str]) -> float:
    values = [_SMALL.get(word, _HUNDRED) for word in words]
    if not values or max(values) > 9:
        return 0
    return float("0." + "".join(str(value) for value in values))
