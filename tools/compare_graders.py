"""How often each grader agrees with labelled cases.

    python -m tools.compare_graders ../shared/data/verify/*.jsonl

Cases are JSON lines: `gold`, `candidate`, `form` (`response`, or an expression, which is put in a
box), `equal` (the label); those labelled by a convention of one grader are left out. Every
candidate stands behind a finished thought, which some graders demand. Prints a markdown table:
agreement, then how often the grader accepts what it should not (+) and refuses what it should
accept (-).
"""

import argparse
import json
from pathlib import Path

from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.records import Status

_GRADERS = ("math_verify", "plain", "deepscaler", "oat", "qwen_math", "qwen_math_units")
_DEADLINE_S = 20


def main() -> None:
    """Read the command line, grade, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--graders", nargs="+", default=_GRADERS)
    chosen = parser.parse_args()
    cases = {path.stem: _read(path) for path in chosen.files}
    print("| grader | " + " | ".join(f"{name} ({len(of)})" for name, of in cases.items()) + " |")
    print("|---" * (len(cases) + 1) + "|")
    for grader in chosen.graders:
        with AnswerPool(workers=2, deadline_s=_DEADLINE_S, reward=grader) as pool:
            shares = [_agreement(pool, of) for of in cases.values()]
        print(f"| `{grader}` | " + " | ".join(shares) + " |", flush=True)


def _read(path: Path) -> list[dict[str, str | bool]]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["label_basis"] != "convention"]


def _agreement(pool: AnswerPool, cases: list[dict[str, str | bool]]) -> str:
    found = pool.grade_many([(str(case["gold"]), _response(case)) for case in cases])
    verdicts = [one.status is Status.OK for one in found]
    labels = [case["equal"] for case in cases]
    pairs = list(zip(verdicts, labels, strict=True))
    wrongly_right, wrongly_wrong = pairs.count((True, False)), pairs.count((False, True))
    right = len(cases) - wrongly_right - wrongly_wrong
    return f"{100 * right / len(cases):.1f} % (+{wrongly_right} -{wrongly_wrong})"


def _response(case: dict[str, str | bool]) -> str:
    stated = case["candidate"]
    return f"</think> {stated}" if case["form"] == "response" else f"</think> \\boxed{{{stated}}}"


if __name__ == "__main__":
    main()
