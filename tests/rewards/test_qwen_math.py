r"""Qwen2.5-Math's harness: what it takes for the answer, and what for equal."""

import time

import pytest
from sympy.parsing.latex import LaTeXParsingError

from megatron_reason.rewards._arithmetic import parse_arithmetic
from megatron_reason.rewards._number_words import spelled_number
from megatron_reason.rewards._qwen_equal import equal
from megatron_reason.rewards._qwen_normal import normal, stated
from megatron_reason.rewards._sympy_latex import parse_latex
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.rewards.qwen_math import grade_response
from megatron_reason.schema.records import Status
from tests.rewards.released import check_accepts_what_the_released_grader_does, needs_data


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("So the final answer is $3$. I hope it is correct, not \\boxed{4}", "3"),
        (r"\boxed{3} and \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\frac{1}{2}", r"\frac{1}{2}"),
        (r"\boxed 7$ is it", "7"),
        ("The answer is 5.", "5."),
        ("My final answer is 5", "5"),
        ("答案是 5\n\nmore", "5"),
        ("1,250 of 3", "3"),
        ("It is 1,250", "1250"),
        ("-.5", "-.5"),
        ("none", ""),
        ("ends with boxed", ""),
        ("кивы 5", "5"),
    ],
)
def test_the_answer_it_takes(response, answer):
    assert stated(response) == answer


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("x = 5 .", "5"),
        ("5.000", "5"),
        ("2.50", "2.50"),
        (r"\frac12", r"\frac{1}{2}"),
        (r"\frac", r"\frac"),
        ("3/4", r"\frac{3}{4}"),
        (r"\sqrt3/2", r"\frac{\sqrt{3}}{2}"),
        (r"\text{five}", "five"),
        ("five apples", "5"),
        (r"12 \text{ cm}", "12"),
        (r"50\%", "50"),
        ("(-inf, 3)", r"(-\infty,3)"),
        (r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("3j", "3i"),
        (r"x \in [1,2]", r"x\in[1,2]"),
        (r"x\in [1,2]", "[1,2]"),
        ("9" * 5000, "9" * 5000),
        ("", ""),
    ],
)
def test_normal_form(answer, form):
    assert normal(answer, keep_units=False) == form
    assert normal(answer, keep_units=True) == form


@pytest.mark.parametrize(
    ("answer", "form"), [("5 m", "5"), ("5 more", "5"), ("2 hours", "2"), ("m", "m")]
)
def test_units_are_removed_where_something_is_left(answer, form):
    assert normal(answer, keep_units=False) == form
    assert normal(answer, keep_units=True) == answer.replace(" ", "")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("five", 5),
        ("twenty-one", 21),
        ("two hundred forty one apples", 241),
        ("three thousand and twelve", 3012),
        ("one million two hundred thousand", 1_200_000),
        ("hundred", 100),
        ("two point five", 2.5),
        ("the point", 0),
        ("thousand five thousand", None),
        ("thousand million", None),
        ("million", 10**6),
        ("million two", None),
        ("zero million", 0),
        ("apples", None),
        ("", None),
    ],
)
def test_number_words(text, number):
    assert spelled_number(text) == number


@pytest.mark.parametrize(
    ("first", "second", "is_equal"),
    [
        ("0.5", "50%", True),
        ("0.5", r"\frac{1}{2}", True),
        ("3.1416", "3.14159", True),
        ("3.15", "3.14159", False),
        ("7", "700", True),
        ("1,2", "12", True),
        ("1,2", "1,3", False),
        ("x,2", "x,3", True),
        ("(1,2)", "(2,1)", False),
        ("[1,2]", "(1,2)", True),
        ("(1,0.5)", r"(1,\frac{1}{2})", True),
        ("x=5", "5", True),
        ("5", "x=5", True),
        ("y=2x", "y-2x=0", True),
        ("2x=y", "y=2x", True),
        ("2x=y", "y=3x", False),
        ("(B)", "B", True),
        ("C", "B", False),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4.0\end{pmatrix}", True),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1&3\end{pmatrix}", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "{1,2}", False),
        (r"\frac{\sqrt{8}}{2}", r"\sqrt{2}", True),
        (r"\sin^2x+\cos^2x", "1", True),
        ("2^{10}", "1024", True),
        ("{1}", "1", True),
        ("", "5", False),
        ("Evelyn", "evelyn", True),
        ("Evelyn", "Ada", False),
    ],
)
def test_equality(first, second, is_equal):
    assert equal(first, second) is is_equal


CODE = (
    "__import__('os').mkdir('{name}')",
    '__import__("posix").mkdir("{name}")',
    "open('{name}', 'w')",
    'open("{name}","w")',
    "(1).__class__.__base__.__subclasses__()",
    "exec(chr(111))",
    "[y for y in (1,)]",
    "lambda: 1",
    "x:=1",
)


@pytest.mark.parametrize("code", CODE)
def test_only_arithmetic_is_parsed(code):
    with pytest.raises(ValueError, match="not arithmetic"):
        parse_arithmetic(code)


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("other", ["5", "x", r"\frac{3}{4}", "(1,2)", "x=y", "open(z)"])
def test_an_answer_is_never_executed(code, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pwned", "x"):
        written = code.replace("{name}", name)
        equal(written, other)
        equal(other, written)
        grade_response(f"\\boxed{{{written}}}", other)
    assert not [*tmp_path.iterdir()]


def test_latex_is_read_without_a_word_about_versions(capfd):
    assert str(parse_latex(r"\frac{1}{2}")) == "1/2"
    assert str(parse_latex("x, y")) == "x"
    with pytest.raises(LaTeXParsingError):
        parse_latex(r"\frac{1}")
    assert capfd.readouterr().out == ""


def test_python_arithmetic_is_read():
    assert parse_arithmetic("sqrt(16) + 2**3") == 12


@pytest.mark.parametrize(
    ("response", "answer", "status"),
    [
        (r"\boxed{5}", "5", Status.OK),
        ("<think> 5", "5", Status.OK),
        ("It is 6.", "5", Status.WRONG),
        ("I do not know", "5", Status.NO_ANSWER),
        ("", "5", Status.NO_ANSWER),
    ],
)
def test_all_of_the_response_is_read(response, answer, status):
    assert grade_response(response, answer).status is status


def test_hostile_answers_end_in_time():
    texts = [
        r"\boxed{9^{9^{9^{9^9}}}}",
        r"\boxed{10**10**10}",
        "(" * 3000 + "1" + ")" * 3000,
        r"\boxed{" + r"\sqrt{2+" * 2000 + "2" + "}" * 2000 + "}",
        "\\boxed{" * 20_000,
        "1 and " * 50_000,
        "\x00\ud800",
    ]
    with AnswerPool(workers=2, deadline_s=2, reward="qwen_math") as pool:
        pool.warm_up()
        begun = time.monotonic()
        found = pool.grade_many([("5", text) for text in texts] + [("5", r"\boxed{5}")])
    # Each may cost its deadline and a fresh worker.
    assert time.monotonic() - begun < 20 * len(texts)
    assert found[-1].status is Status.OK
    assert all(one.status is not Status.OK for one in found[:-1])


@needs_data
def test_verdicts_are_those_of_the_released_grader():
    check_accepts_what_the_released_grader_does("qwen_math")
