import pytest

from megatron_reason.schema.batch import Role
from megatron_reason.schema.credit import GroupOutcome
from megatron_reason.schema.method import create_method
from tests import fixture_f, golden
from tests.loss import credited, run


@golden.cases("lese")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


@pytest.mark.parametrize(
    ("rewards", "num_solved", "alpha"),
    [
        ((3.1, 1.1, 0.4, 3.1), 2, 0.9046128466),
        ((3.1, 0, 0, 0), 1, 0.4427518071),
        ((3.1, 3.1, 0, 0), 2, 1.0),
        ((3.1, 3.1, 3.1, 2.9), 4, 0.1728087926),
        ((0, 0, 0, 0), 0, 0.0),
        ((1.1, 1.1, 0.3, 0.7), 0, 0.0),
    ],
)
def test_golden_alpha(rewards: tuple[float, ...], num_solved: int, alpha: float) -> None:
    solved = (True,) * num_solved + (False,) * (4 - num_solved)
    credit = credited(create_method("lese"), rewards, solved=solved, demo_reward=3.1)
    assert credit.rollout_coef == pytest.approx(alpha, abs=1e-9)
    assert credit.demo_coef == pytest.approx(1 - alpha, abs=1e-9)
    assert credit.keep_rollouts
    assert credit.keep_demo


def test_golden_advantages() -> None:
    credit = credited(create_method("lese"), (3.1, 1.1, 0.4, 3.1), demo_reward=3.1)
    expected = (0.8474310628, -0.5950047888, -1.0998573369, 0.8474310628)
    assert credit.advantages == pytest.approx(expected, abs=1e-9)


def test_saturated_prompts_are_skipped_whole() -> None:
    perfect = (3.1,) * 4
    credit = credited(create_method("lese"), perfect, demo_reward=3.1)
    assert (credit.keep_rollouts, credit.keep_demo) == (False, False)
    kept = credited(create_method("lese", skip_saturated=False), perfect, demo_reward=3.1)
    assert (kept.keep_rollouts, kept.rollout_coef) == (True, 0.0)


def test_ablations_set_alpha() -> None:
    group = GroupOutcome((3.1, 0, 0, 0), (True, False, False, False), (1,) * 4, 3.1, draw=0.37)
    mixes = {"static": 0.5, "random": 0.37, "mastery": 1.8 * (2.718281828459045**0.25 - 1),
             "diversity": 1.0}  # fmt: skip
    for mix, alpha in mixes.items():
        assert create_method("lese", mix=mix).alpha(group) == pytest.approx(alpha)


def test_alpha_weighs_the_penalty_and_the_bonus_too() -> None:
    """They are part of GRPO's loss: pure SFT has neither."""
    for setting in ({"kl_weight": 0.3}, {"entropy_bonus": 0.3}):
        found: list[float] = []
        for alpha in (1.0, 0.25, 0.0):
            batch = fixture_f.batch((Role.ROLLOUT,) * 4, coefs=(alpha,) * 4)
            loss, _, _ = run(golden.published("lese", **setting), batch)
            plain, _, _ = run(golden.published("lese"), batch)
            found.append(loss - plain)
        assert found == pytest.approx([found[0], found[0] / 4, 0.0], abs=1e-15)
        assert found[0] != 0


@pytest.mark.parametrize(
    ("rewards", "deviation"),
    [
        ((3.1, 1.1, 0.4, 3.1), 1.2007809959),
        ((3.1, 0, 0, 0), 1.3423393759),
        ((3.1, 3.1, 0, 0), 1.55),
        ((3.1, 3.1, 3.1, 2.9), 0.0866025404),
        ((1.1, 1.1, 0.3, 0.7), 0.3316624790),
    ],
)
def test_golden_deviations(rewards: tuple[float, ...], deviation: float) -> None:
    """With this scale alpha is a tenth of the deviation."""
    method = create_method("lese", mix="diversity", scale=0.155)
    credit = credited(method, rewards, solved=(True,) * 4, demo_reward=3.1)
    assert 10 * credit.rollout_coef == pytest.approx(deviation, abs=1e-9)


def test_golden_parts() -> None:
    rewards = (3.1, 1.1, 0.4, 3.1)
    advantages = credited(create_method("lese"), rewards, demo_reward=3.1).advantages
    keep = (0, 1, 2, 3, 3)
    batch = fixture_f.batch((*(Role.ROLLOUT,) * 4, Role.DEMO), keep, advantages=(*advantages, 0.0))
    _, _, means = run(golden.published("lese"), batch, keep=keep)
    assert means["train/pg"] == pytest.approx(-0.0948966008, abs=1e-9)
    assert means["train/sft"] == pytest.approx(0.8185328446, abs=1e-9)
