"""Answers graded per second by `AnswerPool`, against math-verify alone in one process.

    python tools/bench/grade.py [--cases FOLDER] [--rounds 3] [--workers 2]

Cases are the JSON lines in FOLDER (columns `gold`, `candidate`, `form`), or generated ones: worked
text that ends in a box, with integers, fractions, roots, sets, intervals, matrices and polynomials.
Both sides see the same cases, each pair once, in interleaved rounds of one run with processes that
have graded nothing but a few fractions; the peer parses gold and response and verifies, without
time limits, as a script would. It runs in one process, and beside that in as many as there are
workers, each with a share of the cases: cores that share their caches and clock are worth less
than their number. Three rows: all cases as they are graded in production, only those that are not
plain to see and so need a worker, and cases again that were graded before. The bar is 0.9 x cores x
the peer in one process. Writes a table and a JSON file to `tools/bench/results/`.
"""

import argparse
import json
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from math_verify import parse, verify  # noqa: E402

from megatron_reason.rewards.math_verify import as_latex, decisive, quick  # noqa: E402
from megatron_reason.rewards.pool import AnswerPool  # noqa: E402

BAR = 0.9
Pair = tuple[str, str]


@dataclass(frozen=True)
class Figure:
    """Median throughput of one set of cases."""

    cases: str
    num_cases: int
    peer_per_s: float
    """math-verify alone, one process."""
    peers_per_s: float
    """math-verify alone, one process per worker."""
    ours_per_s: float
    """The pool."""
    times_cores: float
    """Ratio of the two per core."""
    agreement: float
    """Share of the cases on which both say the same."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    pairs = _recorded(arguments.cases) if arguments.cases else _generated(arguments.size)
    hard = [(gold, text) for gold, text in pairs if quick(decisive(text, gold), gold) is None]
    figures = [
        _measure("all", pairs, arguments.workers, arguments.rounds),
        _measure("not plain to see", hard, arguments.workers, arguments.rounds),
    ]
    figures.append(_measure("graded before", pairs, arguments.workers, arguments.rounds, warm=True))
    _report(figures, arguments.workers, str(arguments.cases.name if arguments.cases else "made"))


def _measure(
    name: str, pairs: list[Pair], workers: int, rounds: int, *, warm: bool = False
) -> Figure:
    peer_s: list[float] = []
    peers_s: list[float] = []
    ours_s: list[float] = []
    agreement = 0.0
    for _ in range(rounds):
        with AnswerPool(workers, deadline_s=30) as pool:
            pool.warm_up()
            pool.grade_many(_fractions(50 * workers))
            if warm:
                pool.grade_many(pairs)
            started_s = time.perf_counter()
            verdicts = pool.grade_many(pairs)
            ours_s.append(time.perf_counter() - started_s)
        seconds, stated = _peers([pairs])
        peer_s.append(seconds)
        peers_s.append(_peers([pairs[i::workers] for i in range(workers)])[0])
        same = sum((v.score == 1.0) == equal for v, equal in zip(verdicts, stated, strict=True))
        agreement = same / len(pairs)
    peer, peers, ours = (len(pairs) / median(taken) for taken in (peer_s, peers_s, ours_s))
    return Figure(name, len(pairs), peer, peers, ours, ours / peer / workers, agreement)


def _fractions(number: int) -> list[Pair]:
    return [(f"{i}/7", f"It is $\\frac{{{i}}}{{7}}$.") for i in range(number)]


def _peers(parts: list[list[Pair]]) -> tuple[float, list[bool]]:
    """Seconds until fresh processes have graded a part each, and what they say, part by part."""
    with ProcessPoolExecutor(len(parts), get_context("spawn")) as processes:
        for future in [processes.submit(_peer, _fractions(50)) for _ in parts]:
            future.result()
        started_s = time.perf_counter()
        stated = list(processes.map(_peer, parts))
        return time.perf_counter() - started_s, [equal for part in stated for equal in part]


def _peer(pairs: list[Pair]) -> list[bool]:
    return [
        verify(
            parse(as_latex(gold), parsing_timeout=0),
            parse(text, parsing_timeout=0),
            timeout_seconds=None,
        )
        for gold, text in pairs
    ]


def _recorded(folder: Path) -> list[Pair]:
    found: dict[Pair, None] = {}
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8", newline="\n") as lines:
            for case in map(json.loads, lines):
                text = case["candidate"]
                found[case["gold"], text if case["form"] == "response" else as_latex(text)] = None
    return list(found)


def _generated(size: int) -> list[Pair]:
    draw = random.Random(5)
    pairs: list[Pair] = []
    while len(pairs) < size:
        a, b, c, d = (draw.randint(2, 99) for _ in range(4))
        gold, stated = draw.choice(
            [
                (str(a), str(a)),
                (str(a * b), f"{a} \\times {b}"),
                (f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{a * c}}}{{{b * c}}}"),
                (f"\\sqrt{{{a * a * b}}}", f"{a}\\sqrt{{{b}}}"),
                (f"\\{{{a},{b},{c}\\}}", f"\\{{{c}, {a}, {b}\\}}"),
                (f"[{a},{a + b})", f"\\left[{a}, {a + b}\\right)"),
                (f"x^2+{a}x+{b}", f"{b} + {a} x + x^{{2}}"),
                (f"\\begin{{pmatrix}}{a}&{b}\\\\{c}&{d}\\end{{pmatrix}}",
                 f"\\begin{{pmatrix}} {a} & {b} \\\\ {c} & {d} \\end{{pmatrix}}"),
                (f"{a}\\pi", f"{a + d % 2} \\pi"),
                (f"{a}\\%", f"{a}\\%"),
            ]
        )  # fmt: skip
        steps = " ".join(
            f"Then ${a} + {i} = {a + i}$, so we go on." for i in range(draw.randint(3, 40))
        )
        pairs.append((gold, f"{steps} Therefore the answer is $\\boxed{{{stated}}}$."))
    return pairs


def _report(figures: list[Figure], workers: int, source: str) -> None:
    lines = [
        f"Answers per second, {workers} workers, cases: {source}, {date.today().isoformat()}",
        "",
        f"| cases | number | math-verify, 1 process | {workers} processes | AnswerPool | per core "
        "| agree |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {f.cases} | {f.num_cases} | {f.peer_per_s:.0f} | {f.peers_per_s:.0f} "
        f"| {f.ours_per_s:.0f} "
        f"| {f.times_cores:.2f} x | {100 * f.agreement:.2f} % |"
        for f in figures
    ]
    met = figures[0].times_cores >= BAR
    lines += ["", f"Bar: at least {BAR} x per core on all cases: {'met' if met else 'missed'}."]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    results = ROOT / "tools" / "bench" / "results"
    results.mkdir(exist_ok=True)
    (results / f"grade-{source}.md").write_text(text, encoding="utf-8")
    content = {"workers": workers, "figures": [asdict(figure) for figure in figures]}
    (results / f"grade-{source}.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
