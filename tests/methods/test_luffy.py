import pytest
import torch

from megatron_reason.schema.batch import Role, TokenStats
from megatron_reason.schema.method import create_method
from tests import fixture_f, golden
from tests.loss import credited, run


@golden.cases("luffy")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


def shaped(prob: float, gamma: float) -> tuple[float, float]:
    """-Loss of a demonstration token of advantage 1, and its derivative in the log-prob."""
    batch = fixture_f.batch((Role.DEMO,), (2,), advantages=(1.0,))
    logprob_T = torch.tensor([prob], dtype=torch.float64).log().requires_grad_()
    stats = TokenStats(logprob_T, torch.zeros(1, dtype=torch.float64))
    loss_T = create_method("luffy", gamma=gamma).token_losses(stats, batch)["pg"]
    (gradient,) = torch.autograd.grad(-loss_T.sum(), logprob_T)
    return -loss_T.item(), gradient.item()


@pytest.mark.parametrize(
    ("prob", "slope"), [(0.01, 0.0826446281), (0.1, 0.25), (0.5, 0.1388888889), (0.9, 0.09)]
)
def test_golden_shaping(prob: float, slope: float) -> None:
    assert shaped(prob, 0.1)[1] == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize(
    ("prob", "value", "slope"),
    [
        (0.2306869562, 0.6975992003, 0.2109545560),
        (0.8433510032, 0.8939949185, 0.0947680042),
    ],
)
def test_golden_shaping_of_the_fixture(prob: float, value: float, slope: float) -> None:
    """Of d1 and d2."""
    assert shaped(prob, 0.1) == pytest.approx((value, slope), abs=1e-9)


def test_a_large_gamma_gives_the_unshaped_ratio() -> None:
    value, slope = shaped(0.3, 1e9)
    assert 1e9 * value == pytest.approx(0.3)
    assert 1e9 * slope == pytest.approx(0.3)


def test_the_demonstration_joins_the_group_or_not() -> None:
    joined = credited(create_method("luffy"), (1, 0, 0), demo_reward=1)
    assert (joined.advantages, joined.demo_advantage) == ((0.5, -0.5, -0.5), 0.5)
    apart = credited(create_method("luffy", group="rollouts"), (1, 0, 0), demo_reward=1)
    assert apart.advantages == pytest.approx((2 / 3, -1 / 3, -1 / 3))
    assert apart.demo_advantage == 0.0


def test_rl_with_sft_loss_adds_likelihood_to_the_policy_gradient() -> None:
    method = create_method(
        "luffy", demo_loss="likelihood", group="rollouts", entropy_bonus=0, max_response_length=4
    )
    roles = (Role.ROLLOUT, Role.ROLLOUT, Role.ROLLOUT, Role.DEMO)
    batch = fixture_f.batch(roles, advantages=(0.5, -0.5, -0.5, 0.0))
    loss, _, means = run(method, batch)
    assert means["train/sft"] == pytest.approx(0.8185328446, abs=1e-9)
    assert loss == pytest.approx(means["train/pg"] + means["train/sft"], abs=1e-12)
