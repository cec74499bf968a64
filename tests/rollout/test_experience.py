"""From graded groups to samples, metrics and readable rows."""

from dataclasses import replace

import pytest

from megatron_reason.generation.base import Completion
from megatron_reason.rollout.collect import Rollout, RolloutGroup
from megatron_reason.rollout.experience import credited, measured
from megatron_reason.rollout.prompts import Prompt
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import create_method
from megatron_reason.schema.records import Finish, Message, Problem, Status, Verdict

PROMPT = Prompt(Problem((Message("user", "1+1="),), "2", "sums"), (5, 6, 7))
DEMO = TokenizedSample("d", Role.DEMO, (5, 6, 7, 8, 9), 3)


def rollout(status: Status, *ids: int, score: float | None = None) -> Rollout:
    completion = Completion(ids, tuple(-0.5 * i for i in ids), Finish.STOP, policy_version=3)
    return Rollout(completion, f"text {ids}", Verdict(score or float(status is Status.OK), status))


def group(*rollouts: Rollout) -> RolloutGroup:
    return RolloutGroup(PROMPT, rollouts, DEMO, Verdict(1.0, Status.OK))


def test_rollouts_that_could_not_be_checked_leave_their_group():
    grpo = create_method("grpo", divide_by_std=False)
    drawn = group(
        rollout(Status.OK, 1, 2), rollout(Status.TIMEOUT, 3), rollout(Status.WRONG, 4),
        rollout(Status.CRASH, 8),
    )  # fmt: skip
    found = credited(grpo, drawn, name="g", seed=0)
    samples = found.samples()
    assert [(s.ids, s.advantage, s.is_correct) for s in samples] == [
        ((5, 6, 7, 1, 2), 0.5, True), ((5, 6, 7, 4), -0.5, False),
    ]  # fmt: skip
    assert samples[0].rollout_logprobs == (-0.5, -1.0)
    assert {s.group for s in samples} == {"g"}
    rows = found.rows("1+1=")
    assert [row["advantage"] for row in rows] == [0.5, None, -0.5, None]
    assert {row["policy_version"] for row in rows} == {3}
    means = measured([found]).means()
    assert means["reward/mean"] == pytest.approx(0.5), "of what could be checked"
    assert means["reward/status_timeout"] == pytest.approx(0.25)
    assert (means["groups/mixed"], means["groups/incomplete"], means["groups/dropped"]) == (1, 1, 0)
    assert "reward/format" not in means


def test_what_form_alone_earned_is_logged_where_a_reward_has_such_a_part():
    right, wrong = rollout(Status.OK, 1), rollout(Status.WRONG, 2)
    rated = [
        replace(one, verdict=replace(one.verdict, format_score=score))
        for one, score in ((right, 1.1), (wrong, 0.3))
    ]
    found = credited(create_method("grpo"), group(*rated), name="g", seed=0)
    assert measured([found]).means()["reward/format"] == pytest.approx(0.7)


def test_a_group_with_nothing_left_to_compare_is_dropped_but_a_single_one_is_not():
    grpo = create_method("grpo")
    drawn = group(rollout(Status.OK, 1), rollout(Status.CRASH, 2))
    left = credited(grpo, drawn, name="g", seed=0)
    assert not left.contributes
    alone = credited(grpo, group(rollout(Status.OK, 1)), name="g", seed=0)
    assert [s.advantage for s in alone.samples()] == [1.0]


def test_the_demonstration_carries_its_own_advantage_and_factor():
    lese = create_method("lese", max_reward=1.0, max_std=0.5)
    drawn = group(rollout(Status.OK, 1), rollout(Status.WRONG, 2))
    *rollouts, demo = credited(lese, drawn, name="g", seed=0).samples()
    assert demo.role == Role.DEMO
    assert (demo.ids, demo.num_prompt_tokens, demo.group) == (DEMO.ids, 3, "g")
    assert demo.coef == pytest.approx(1 - rollouts[0].coef)
    luffy = credited(create_method("luffy"), drawn, name="g", seed=0).samples()
    assert luffy[-1].advantage == pytest.approx(1 / 3)


@pytest.mark.parametrize("status", [Status.TIMEOUT, Status.CRASH])
@pytest.mark.parametrize("name", ["srft", "luffy"])
def test_a_demonstration_that_could_not_be_checked_is_not_a_wrong_one(
    name: str, status: Status
) -> None:
    drawn = group(rollout(Status.OK, 1), rollout(Status.WRONG, 2))
    hung = replace(drawn, demo_verdict=Verdict(0.0, status))
    found = credited(create_method(name), hung, name="g", seed=0)
    without = credited(create_method(name), replace(drawn, demo=None, demo_verdict=None),
                       name="g", seed=0)  # fmt: skip
    assert found.samples() == without.samples()
    means = measured([found]).means()
    assert means["groups/demo_unchecked"] == 1
    assert means["groups/with_demo"] == 0
    assert "reward/demo" not in means


def test_a_group_of_which_nothing_could_be_checked_is_no_wrong_one() -> None:
    drawn = group(rollout(Status.TIMEOUT, 1), rollout(Status.CRASH, 2))
    means = measured([credited(create_method("grpo"), drawn, name="g", seed=0)]).means()
    assert means["groups/dropped"] == means["groups/incomplete"] == 1
    assert means["groups/all_wrong"] == means["groups/all_correct"] == means["groups/mixed"] == 0
    assert "reward/mean" not in means


def test_an_empty_answer_is_counted_and_teaches_nothing():
    grpo = create_method("grpo")
    drawn = group(rollout(Status.NO_ANSWER), rollout(Status.OK, 1))
    found = credited(grpo, drawn, name="g", seed=0)
    assert [s.ids for s in found.samples()] == [(5, 6, 7, 1)]
    assert measured([found]).means()["reward/status_no_answer"] == pytest.approx(0.5)


def test_the_coin_of_a_group_is_fixed_by_seed_and_name():
    method = create_method("lese", mix="random", skip_saturated=False)
    drawn = group(rollout(Status.OK, 1), rollout(Status.WRONG, 2))

    def alpha(name: str, seed: int) -> float:
        return credited(method, drawn, name=name, seed=seed).credit.rollout_coef

    assert alpha("a", 1) == alpha("a", 1)
    assert len({alpha("a", 1), alpha("b", 1), alpha("a", 2)}) == 3
