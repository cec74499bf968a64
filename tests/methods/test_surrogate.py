import math

import pytest
import torch
from torch import Tensor

from megatron_reason.methods._surrogate import (
    PolicyConfig,
    Surrogate,
    kl_estimate,
)
from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import Role, TokenStats
from megatron_reason.schema.method import METHODS, Frozen, create_method
from tests import fixture_f, golden
from tests.loss import run

ROLLOUTS = (Role.ROLLOUT,) * 4


def value(advantage: float, ratio: float, **config: object) -> tuple[float, float]:
    """Loss of one token with this ratio, and its derivative in the log-prob."""
    batch = fixture_f.batch((Role.ROLLOUT,), (2,), advantages=(advantage,))
    logprob_T = (batch.old_logprob_T + math.log(ratio)).requires_grad_()
    stats = TokenStats(logprob_T, torch.zeros(1, dtype=torch.float64))
    loss_T = Surrogate.of(stats, batch, golden.published("grpo", **config).config).loss_T()
    (gradient,) = torch.autograd.grad(loss_T.sum(), logprob_T)
    return loss_T.item(), gradient.item()


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected", "slope"),
    [(-1, 5, 3.0, 0.0), (-1, 2, 2.0, 2.0), (-1, 0.5, 0.8, 0.0), (1, 5, -1.28, 0.0),
     (1, 0.5, -0.5, -0.5)],
)  # fmt: skip
def test_golden_dual_clip(advantage: float, ratio: float, expected: float, slope: float) -> None:
    loss, gradient = value(advantage, ratio, clip_high=0.28)
    assert loss == pytest.approx(expected, abs=1e-12)
    assert gradient == pytest.approx(slope, abs=1e-12)


def test_without_any_clip_the_ratio_is_unbounded() -> None:
    loss, gradient = value(-1, 5, clip_low=None, clip_high=None, dual_clip=None)
    assert (loss, gradient) == (pytest.approx(5.0), pytest.approx(5.0))


def test_golden_ratios_and_what_is_clipped() -> None:
    batch = fixture_f.batch(ROLLOUTS, advantages=(1.0, -1.0, -1.0, 1.0))
    stats = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET)
    surrogate = Surrogate.of(stats, batch, create_method("grpo").config)
    expected = [
        0.9282650807, 1.5426415228, 1.0009436468, 0.6999930721, 0.9906064849, 1.0773757568,
        0.7659076672, 3.7796369734,
    ]  # fmt: skip
    assert surrogate.ratio_T.tolist() == pytest.approx(expected, abs=1e-9)
    low, high = surrogate.is_clipped_T()
    assert low.nonzero()[:, 0].tolist() == [3]
    assert high.nonzero()[:, 0].tolist() == [1, 7]


def test_golden_clipped_losses() -> None:
    batch = golden.rollouts(golden.STD_ADVANTAGES)
    stats = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET)
    loss_T = Surrogate.of(stats, batch, golden.published("grpo").config).loss_T()
    expected = [
        -0.8038997490, -1.0392286845, 0.8668411245, 0.6928191230, 0.8578888952, 0.9330331588,
        -0.6632943479, -1.0392286845,
    ]  # fmt: skip
    assert loss_T.tolist() == pytest.approx(expected, abs=1e-9)


def test_golden_sequence_ratios() -> None:
    batch = fixture_f.batch(ROLLOUTS, advantages=(1.0,) * 4)
    stats = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET)
    ratio_T = Surrogate.of(stats, batch, create_method("grpo", ratio="sequence").config).ratio_T
    expected = [1.1966537752, 0.8853904745, 1.0773757568, 1.7014267358]
    assert ratio_T[[0, 2, 5, 6]].tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "slope"), [("k1", 1.0), ("k2", 0.7), ("k3", 1 - math.exp(-0.7)), ("k3_plus", 0.7)]
)
def test_gradients_of_the_estimators(kind: str, slope: float) -> None:
    """With d = log p - log ref = 0.7."""
    logprob_T = torch.tensor([-0.3], dtype=torch.float64, requires_grad=True)
    ref_T = torch.tensor([-1.0], dtype=torch.float64)
    estimate_T = kl_estimate(logprob_T, ref_T, kind)
    (gradient,) = torch.autograd.grad(estimate_T.sum(), logprob_T)
    assert gradient.item() == pytest.approx(slope)
    if kind == "k3_plus":
        assert estimate_T.item() == pytest.approx(kl_estimate(logprob_T, ref_T, "k3").item())


def with_policy_config() -> list[str]:
    """Names of the methods that are configured as GRPO is."""
    classes = {name: METHODS.get(name).config_class for name in METHODS.names()}
    return [name for name, cls in classes.items() if issubclass(cls, PolicyConfig)]


OTHERS = [
    *((name, {}) for name in with_policy_config() if name != "grpo"),
    ("cov", {"mode": "kl"}),
    ("luffy", {"demo_loss": "likelihood"}),
]


def difference(name: str, weight: dict[str, float], **settings: object) -> tuple[float, Tensor]:
    """What a weight adds to the loss of four rollouts, and to its gradient."""
    batch = golden.rollouts(golden.STD_ADVANTAGES)
    settings = {"mean": "token_mean", "entropy_bonus": 0.0} | settings
    if name == "chord":
        settings |= {"peak": 0.0, "valley": 0.0}
    loss, gradient, _ = run(golden.published(name, **(settings | weight)), batch)
    plain, without, _ = run(golden.published(name, **settings), batch)
    return loss - plain, gradient - without


@pytest.mark.parametrize(("name", "mode"), OTHERS)
@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_every_method_has_the_penalty_of_grpo(name: str, kind: str, mode: dict[str, str]) -> None:
    weight = {"kl_weight": 0.3}
    loss, gradient = difference(name, weight, kl_kind=kind, **mode)
    expected, golden_gradient = difference("grpo", weight, kl_kind=kind)
    assert loss == pytest.approx(expected, abs=1e-15)
    torch.testing.assert_close(gradient, golden_gradient, atol=1e-15, rtol=1e-12)
    if kind == "k3":
        assert loss == pytest.approx(0.3 * 0.0215266897, abs=1e-10)
    assert Frozen.REF_LOGPROB in create_method(name, **mode, **weight).required().frozen


@pytest.mark.parametrize(("name", "mode"), OTHERS)
def test_every_method_has_the_bonus_of_grpo(name: str, mode: dict[str, str]) -> None:
    loss, gradient = difference(name, {"entropy_bonus": 0.3}, **mode)
    expected, golden_gradient = difference("grpo", {"entropy_bonus": 0.3})
    assert loss == pytest.approx(expected, abs=1e-15)
    assert loss == pytest.approx(-0.3 * 0.9556979625, abs=1e-10)
    torch.testing.assert_close(gradient, golden_gradient, atol=1e-15, rtol=1e-12)
