"""Time to grade stored answers again: 30 problems x 128 samples, as an AIME evaluation has.

    .venv/bin/python tools/bench/grade_stored.py

Texts are long thoughts, no two of them equal, with an answer in a box: right ones in the gold
answer's own form or in another (fraction, decimal), wrong ones among 32 a problem, half of which
need a computer algebra system, some without an answer. Writes `results/grade_stored.json`.
"""

import json
import os
import random
import time
from pathlib import Path

from megatron_reason.rewards.pool import AnswerPool

NUM_PROBLEMS, NUM_SAMPLES, NUM_WRONG = 30, 128, 32
WORKERS = 2
RESULT = Path(__file__).parent / "results" / "grade_stored.json"


def wrong_answers(rng: random.Random) -> list[str]:
    """What one problem is answered with wrongly."""
    plain = [str(rng.randint(0, 999)) for _ in range(NUM_WRONG // 2)]
    texts = [f"\\text{{{rng.randint(0, 999)} ways}}" for _ in range(NUM_WRONG // 4)]
    roots = [
        f"x = {rng.randint(0, 999)} + \\sqrt{{{rng.randint(2, 99)}}}" for _ in range(NUM_WRONG // 4)
    ]
    return [*plain, *texts, *roots]


def response(gold: int, wrong: list[str], rng: random.Random) -> str:
    """A long thought and an answer in one of many forms."""
    steps = " ".join(f"Then {rng.randint(1, 999)} + {rng.randint(1, 999)}." for _ in range(400))
    forms = [
        f"\\boxed{{{gold}}}",
        f"\\boxed{{{gold}}}",
        f"\\boxed{{\\frac{{{gold * 3}}}{{3}}}}",
        f"\\boxed{{{gold}.0}}",
        *(f"\\boxed{{{rng.choice(wrong)}}}" for _ in range(4)),
        "I cannot say.",
    ]
    return f"<think>{steps}</think> The answer is {rng.choice(forms)}"


def main() -> None:
    """Grade once with warm workers and write what it took."""
    rng = random.Random(0)
    golds = [rng.randint(0, 999) for _ in range(NUM_PROBLEMS)]
    pairs: list[tuple[str, str]] = []
    for gold in golds:
        wrong = wrong_answers(rng)
        pairs += [(str(gold), response(gold, wrong, rng)) for _ in range(NUM_SAMPLES)]
    started_s = time.perf_counter()
    with AnswerPool(WORKERS, deadline_s=10.0) as pool:
        pool.warm_up()
        warm_s = time.perf_counter()
        verdicts = pool.grade_many(pairs)
    ended_s = time.perf_counter()
    counts: dict[str, int] = {}
    for verdict in verdicts:
        counts[str(verdict.status)] = counts.get(str(verdict.status), 0) + 1
    result = {
        "answers": len(pairs),
        "characters": sum(len(text) for _, text in pairs),
        "workers": WORKERS,
        "cores": os.cpu_count(),
        "start_s": round(warm_s - started_s, 2),
        "grade_s": round(ended_s - warm_s, 2),
        "statuses": counts,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
