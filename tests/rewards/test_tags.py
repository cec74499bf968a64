from megatron_reason.rewards._tags import ANSWER, END_ANSWER, between


def test_between_takes_the_first_pair_and_needs_both():
    assert between("a<answer>b</answer>c<answer>d</answer>", ANSWER, END_ANSWER) == "b"
    assert between("</answer><answer>b", ANSWER, END_ANSWER) is None
    assert between("b</answer>", ANSWER, END_ANSWER) is None
