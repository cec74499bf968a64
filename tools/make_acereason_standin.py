"""Writes a stand-in for OXA-AceReason-1.1-Math: its columns and its flaws, invented sums.

    python tools/make_acereason_standin.py TARGET.jsonl --problems 20000 --traces 10 --words 40

Rows are {uuid, query, gt, DeepSeek-R1_Response_List}. Of the traces about a quarter are wrong, some
never finish thinking, some repeat another; some problems come twice, and a few true answers are
wrong. The same arguments give the same bytes.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

STEPS = (
    "Let me look at the numbers again.",
    "First I take the larger one.",
    "Wait, that is not what was asked.",
    "Adding the two gives the sum.",
    "I check this by subtracting.",
    "So the result holds.",
)


def main() -> None:
    """Write the file that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("--problems", type=int, default=20_000)
    parser.add_argument("--traces", type=int, default=10)
    parser.add_argument("--words", type=int, default=40)
    arguments = parser.parse_args()
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    with arguments.target.open("w", encoding="utf-8") as lines:
        for row in rows(arguments.problems, arguments.traces, arguments.words):
            lines.write(json.dumps(row) + "\n")


def rows(num_problems: int, num_traces: int, words: int) -> Iterator[dict[str, str | list[str]]]:
    """Rows of the stand-in; `words` is the median length of a trace."""
    draw = random.Random(11)
    for number in range(num_problems):
        left, right = number + 17, draw.randint(2, 999)
        answer = left + right + (draw.random() < 0.001)
        twin = draw.random() < 0.002
        yield {
            "uuid": f"standin-{number}",
            "query": f"What is {left if not twin else 17} + {right if not twin else 4}?",
            "gt": str(answer if not twin else 21),
            "DeepSeek-R1_Response_List": [
                _trace(draw, left + right if not twin else 21, words) for _ in range(num_traces)
            ],
        }


def _trace(draw: random.Random, answer: int, words: int) -> str:
    num_steps = max(round(draw.lognormvariate(0, 0.6) * words / 6), 1)
    thoughts = " ".join(draw.choices(STEPS, k=num_steps))
    kind = draw.random()
    if kind < 0.02:
        return f"<think>{thoughts}"
    stated = answer if kind < 0.77 else answer + draw.randint(1, 9)
    return f"<think>\n{thoughts}\n</think>\nThe sum is $\\boxed{{{stated}}}$."


if __name__ == "__main__":
    main()
