"""Verdicts of `math_verify`: hand-made cases, recorded data, and against the library itself."""

import json
from pathlib import Path

import pytest
from math_verify import parse, verify

from megatron_reason.rewards.math_verify import as_latex, grade_math
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.records import Status

VERIFY = Path(__file__).parents[2] / ".." / "shared" / "data" / "verify"
needs_data = pytest.mark.skipif(
    not VERIFY.is_dir(), reason="needs the recorded verdicts in ../shared/data/verify"
)


@pytest.mark.parametrize(
    ("response", "answer", "status"),
    [
        (r"So it is \boxed{18}.", "18", Status.OK),
        (r"So it is \boxed{018}.", "18", Status.OK),
        (r"So it is \boxed{19}.", "18", Status.WRONG),
        (r"So it is $\boxed{\frac{1}{2}}$.", "0.5", Status.OK),
        (r"First $\boxed{3}$. No, it is $\boxed{4}$.", "4", Status.OK),
        (r"Once \boxed{4}, twice \boxed{4}", "4", Status.OK),
        (r"The answer is $x = 5$", "5", Status.OK),
        (r"The answer is 1,250 dollars", "1250", Status.OK),
        (r"\boxed{2} and then some text about 7", "2", Status.OK),
        (r"It is \boxed{8.7 \times 10^{8}}", "8.7e8", Status.OK),
        ("I do not know.", "18", Status.NO_ANSWER),
        ("", "18", Status.NO_ANSWER),
        (r"\boxed{}", "18", Status.PARSE_ERROR),
        (r"\boxed{5}", "", Status.PARSE_ERROR),
        # The last complete box, whatever is announced besides.
        (r"The final answer is 4. I hope it is correct. \boxed{5}", "5", Status.OK),
        (r"\boxed{\frac{1}{\sqrt{\frac{4}{1}}}}", r"\frac{1}{2}", Status.OK),
        (r"\boxed{3}, or rather \boxed{4", "3", Status.OK),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1,2\right.", Status.OK),
        # After the thoughts only.
        (r"<think>\boxed{4}</think> It is \boxed{5}.", "5", Status.OK),
        (r"<think>\boxed{5}</think> It is \boxed{4}.", "5", Status.WRONG),
        (r"<think>\boxed{5}</think>", "5", Status.NO_ANSWER),
        (r"<think>It is \boxed{5}", "5", Status.NO_ANSWER),
        (r"It is \boxed{4}</think>\boxed{5}", "5", Status.OK),
        # Choices.
        (r"\boxed{C}", "C", Status.OK),
        (r"\boxed{\text{(C)}}", "C", Status.OK),
        (r"\boxed{C. 42}", "(C)", Status.OK),
        (r"\boxed{\textbf{(B)}\ 42}", "C", Status.WRONG),
        ("The answer is (C).", "C", Status.OK),
        ("Answer: **D**", "C", Status.WRONG),
        # Intervals and sets.
        (r"\boxed{\left[1, 2\right)}", "[1,2)", Status.OK),
        (r"\boxed{(1, 2]}", "[1,2)", Status.WRONG),
        (r"\boxed{(-\infty, 3) \cup [5, \infty)}", r"(-\infty,3)\cup[5,\infty)", Status.OK),
        (r"\boxed{\{2, 1\}}", r"\{1,2\}", Status.OK),
        (r"\boxed{1} and \boxed{2}", "1, 2", Status.OK),
        (r"\boxed{\{1, 3\}}", r"\{1,2\}", Status.WRONG),
        # Matrices.
        (
            r"\boxed{\begin{pmatrix} 0.5 \\ 2 \end{pmatrix}}",
            r"\begin{pmatrix} \frac12 \\ 2 \end{pmatrix}",
            Status.OK,
        ),
        (
            r"\boxed{\begin{pmatrix} 1 & 2 \end{pmatrix}}",
            r"\begin{pmatrix} 1 & 3 \end{pmatrix}",
            Status.WRONG,
        ),
        # Units, money and percentages.
        (r"\boxed{5\text{ cm}}", "5", Status.OK),
        (r"\boxed{\$18.90}", r"\$18.90", Status.OK),
        (r"\boxed{50\%}", "50\\%", Status.OK),
        (r"\boxed{50}\%", "50\\%", Status.OK),
        (r"\boxed{50\%}", "50", Status.OK),
        (r"\boxed{50\%}", "0.5", Status.OK),
        (r"\boxed{50\%}", "5", Status.WRONG),
        (r"\boxed{1{,}250}", "1,250", Status.OK),
        # Number bases.
        (r"\boxed{52_8}", "52_8", Status.OK),
        (r"\boxed{52_{9}}", "52_8", Status.WRONG),
        # What no parser should see.
        (r"\boxed{" + "7" * 9_999 + "}", "7" * 9_999, Status.OK),
        (r"\boxed{" + "7" * 9_999 + "}", "7" * 9_998 + "8", Status.WRONG),
        (r"\boxed{" + "7" * 9_999 + "}", r"\frac12", Status.PARSE_ERROR),
        (r"\boxed{" + r"\sqrt{" * 500 + "2" + "}" * 500 + "}", "2", Status.PARSE_ERROR),
        ("\\boxed{\x00}", "2", Status.PARSE_ERROR),
    ],
)
def test_status(response, answer, status):
    found = grade_math(response, answer)
    assert found.status is status
    assert found.score == (status is Status.OK)


def test_reports_what_it_extracted():
    assert grade_math(r"thus \boxed{19}.", "18").extracted == "19"
    assert grade_math(r"thus $x = \frac{3}{4}$", "18").extracted == r"x = \frac{3}{4}"


@pytest.mark.parametrize("answer", ["5", "-5", "5.0", "05", "50", "0.5", "1000000"])
@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{5}",
        r"$\boxed{ 5 }$.",
        r"\[ x = \boxed{-5} \]",
        r"\(\boxed{5.0}\)",
        r"The final answer is $\boxed{05}$.",
        r"The answer is 7. \boxed{50}",
        r"12 \boxed{0.5}",
        r"\boxed{1000000}",
        r"$\boxed{5}\%$",
        r"\boxed{5} apples",
        r"\boxed{5} or \boxed{50}",
    ],
)
def test_short_cut_agrees_with_the_library(response, answer):
    library = verify(
        parse(as_latex(answer), parsing_timeout=None),
        parse(response, parsing_timeout=None),
        timeout_seconds=None,
    )
    assert (grade_math(response, answer).status is Status.OK) == library


# Wrong verdicts, as measured with math-verify 0.9.0: it compares free symbols next to units or
# derivatives by their letters.
@needs_data
@pytest.mark.parametrize(
    ("name", "rows", "most_wrong"),
    [
        ("math_verify_tests", 111, 0),
        ("math500_variants", 421, 0),
        ("math_cot_responses", 400, 0),
        ("gsm8k_model_solutions", 2636, 0),
        ("minerva_pairs", 155, 7),
    ],
)
def test_agreement_with_recorded_verdicts(name, rows, most_wrong, record_property):
    with (VERIFY / f"{name}.jsonl").open(encoding="utf-8", newline="\n") as lines:
        cases = [case for case in map(json.loads, lines) if case["label_basis"] != "convention"]
    pairs = [
        (
            case["gold"],
            case["candidate"] if case["form"] == "response" else as_latex(case["candidate"]),
        )
        for case in cases
    ]
    with AnswerPool(workers=2, deadline_s=20) as pool:
        verdicts = pool.grade_many(pairs)
    wrong = [
        case["id"]
        for case, found in zip(cases, verdicts, strict=True)
        if (found.status is Status.OK) != case["equal"]
    ]
    record_property("agreement", f"{len(cases) - len(wrong)} of {len(cases)}; not {wrong}")
    assert len(cases) == rows
    assert len(wrong) <= most_wrong
