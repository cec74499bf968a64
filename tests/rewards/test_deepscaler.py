r"""DeepScaleR's grader: which box it takes, its normal forms, and the released one's verdicts."""

import pytest

from megatron_reason.rewards import _mathd, _prm800k
from megatron_reason.rewards._boxed import box_after_first_thought, last_box
from megatron_reason.rewards.deepscaler import grade_solution
from megatron_reason.schema.records import Status
from tests.rewards.released import check_accepts_what_the_released_grader_does, needs_data


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (r"<think>5</think> \boxed{2}", Status.OK),
        (r"a</think> \boxed{2} </think> \boxed{3}", Status.OK),
        (r"a</think> \boxed{3} </think> \boxed{2}", Status.WRONG),
        (r"a</think> no box </think> \boxed{2}", Status.NO_ANSWER),
        (r"\boxed{2}", Status.NO_ANSWER),
        (r"</think> \boxed{2} \boxed{3}", Status.WRONG),
        (r"</think> \boxed{2} \boxed{2", Status.NO_ANSWER),
        (r"</think> \boxed {2}", Status.NO_ANSWER),
        (r"</think> \fbox{2}", Status.NO_ANSWER),
    ],
)
def test_the_last_box_between_the_first_thought_and_a_second_decides(response, status):
    assert grade_solution(response, "2").status is status
    part = box_after_first_thought(response, "2")
    assert box_after_first_thought(part, "2") == part
    assert grade_solution(part, "2").status is status


@pytest.mark.parametrize(
    ("stated", "gold", "is_equal"),
    [
        (r"\frac{1}{2}", "0.5", True),
        ("1/2", r"\frac12", True),
        (r"\dfrac{1}{2}", r"\frac{1}{2}", True),
        # Fractions that are not reduced, and integers in another form, are wrong.
        (r"\frac{2}{4}", r"\frac{1}{2}", False),
        ("4/2", "2", False),
        ("2.0", "2", True),
        ("1,000", "1000", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("(1, 2)", "(1,2)", True),
        ("(1,2]", "(1,2)", False),
        ("5 cm", "5", True),
        ("x = 5", "5", True),
        ("xy = 5", "5", False),
        ("x=5", "5", True),
        (r"\text{Evelyn}", "evelyn", True),
        ("a+b+c", "c+b+a", False),
        ("a+b", "b+a", True),
        ("2^{10}", "1024", False),
    ],
)
def test_equality(stated, gold, is_equal):
    found = grade_solution(f"</think>\\boxed{{{stated}}}", gold)
    assert (found.status is Status.OK) == is_equal
    assert found.extracted == stated


def test_a_gold_answer_may_be_boxed():
    assert grade_solution(r"</think>\boxed{7}", r"So $\boxed{7}$").status is Status.OK
    assert grade_solution(r"</think>\boxed{7}", r"So $\boxed{7").status is Status.PARSE_ERROR


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        (r" \text{ 5 } ", "5"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        (r"\frac3", r"\frac3"),
        (r"3\frac", r"3\frac"),
        (r"\sqrt2 + .5", r"\sqrt{2}+0.5"),
        (r"5\text{ cm}", "5"),
        (r"5\text{ cm}\text{ or so}", r"5\text{ cm}\text{ or so}"),
        (r"\left( 1 , 2 \right)", "(1,2)"),
        (r"90^\circ", "90"),
        (r"12\%", "12"),
        ("-3/4", r"\frac{-3}{4}"),
        ("03/4", "03/4"),
        ("", ""),
    ],
)
def test_normal_form_of_math(answer, normal):
    assert _mathd.normal(answer) == normal


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        (r"3 \frac{1}{2}", "3+1/2"),
        (r"\$1,234", "1234"),
        ("2 million", "2*10^6"),
        ("5 minutes", "5"),
        (r"\pi r^2", "pir^2"),
        ("1e400", "1e400"),
        ("nan", "nan"),
    ],
)
def test_normal_form_of_prm800k(answer, normal):
    assert _prm800k.normal(answer) == normal


@pytest.mark.parametrize("gold", [r"\frac{3}{4}", "x", "5"])
def test_an_answer_is_never_executed(gold, tmp_path, monkeypatch):
    """LaTeX for a backslash spells out, in two letters, what sympy would take for Python."""
    monkeypatch.chdir(tmp_path)
    code = "".join(rf"\textbackslash{{}}{ord(each):o}" for each in "open('pwned','w')")
    for stated in (f'ln("{code}")', f"ln('{code}')", "open('pwned','w')"):
        assert grade_solution(f"</think>\\boxed{{{stated}}}", gold).status is Status.WRONG
    assert not [*tmp_path.iterdir()]


def test_a_box_is_found_by_counting_every_brace():
    assert last_box(r"\boxed{\frac{1}{2}} and more") == r"\frac{1}{2}"
    assert last_box(r"\boxed{\{1\}}") == r"\{1\}"
    assert last_box("no box") is None


@needs_data
def test_verdicts_are_those_of_the_released_grader():
    check_accepts_what_the_released_grader_does("deepscaler", before="</think>")
