"""How often the released graders accept recorded answers, and which ones: what ours must repeat.

The counts and the fingerprints of their verdicts (one character a case, `1` for right, in the order
of the file; the first 16 digits of the SHA-256) come from running the released code itself on
../shared/data/verify: Oat's grader as the package gem-llm 0.1.0 carries it, without its limits of a
second; DeepScaleR's as the same file's PRM800K part and verl 0.9.1's copy of MATH's normal form;
`math_equal` as evalscope 0.12.1 has it from Qwen2.5-Math, with that repository's `strip_string`.
sympy 1.14.0, antlr 4.11.0 (sympy asks for it), math-verify 0.9.0; `latex2sympy` is the one of
latex2sympy2_extended.
"""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.records import Status

VERIFY = Path(__file__).parents[2] / ".." / "shared" / "data" / "verify"
needs_data = pytest.mark.skipif(
    not VERIFY.is_dir(), reason="needs the recorded verdicts in ../shared/data/verify"
)
FILES = ("math_verify_tests", "math500_variants", "math_cot_responses", "minerva_pairs")
ACCEPTED = {
    "deepscaler": (
        (52, "8cb18a83384bc1f8"), (190, "1a37c091520bb5ff"), (355, "2f35567d510a8229"),
        (56, "feb1f2c05cdbd735"),
    ),
    "oat": (
        (97, "e59400d237b7e925"), (199, "7d53743ac6da4db4"), (355, "2f35567d510a8229"),
        (66, "6b8cb3aec451462b"),
    ),
    "qwen_math": (
        (60, "61ca0f327050fd60"), (202, "8fd8d3042760d0b5"), (354, "9b3535f287002a6f"),
        (38, "6482e8eae62782d3"),
    ),
    "qwen_math_units": (
        (56, "72959e1796d87498"), (202, "8fd8d3042760d0b5"), (354, "9b3535f287002a6f"),
        (58, "73e4840304eeac2d"),
    ),
}  # fmt: skip


def check_accepts_what_the_released_grader_does(reward: str, *, before: str = "") -> None:
    """Grade the recorded answers with `reward`, each behind the text `before`."""
    with AnswerPool(workers=2, deadline_s=60, reward=reward) as pool:
        for name, (count, fingerprint) in zip(FILES, ACCEPTED[reward], strict=True):
            with (VERIFY / f"{name}.jsonl").open(encoding="utf-8", newline="\n") as lines:
                cases = [json.loads(line) for line in lines]
            found = pool.grade_many([(case["gold"], before + _response(case)) for case in cases])
            bits = "".join("1" if one.status is Status.OK else "0" for one in found)
            assert (name, bits.count("1")) == (name, count)
            assert sha256(bits.encode()).hexdigest()[:16] == fingerprint, name


def _response(case: dict[str, str]) -> str:
    stated = case["candidate"]
    return stated if case["form"] == "response" else f"\\boxed{{{stated}}}"
