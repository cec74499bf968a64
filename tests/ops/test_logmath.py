import math

import pytest
import torch

from megatron_reason.ops.logmath import log1mexp
from megatron_reason.ops.token_stats import token_stats_from_logits


def test_matches_the_definition_where_it_is_stable() -> None:
    logprob = torch.tensor([-20.0, -3.0, -0.7, -0.69, -0.1, -1e-3], dtype=torch.float64)
    expected = torch.tensor([math.log1p(-math.exp(x)) for x in logprob.tolist()]).double()
    torch.testing.assert_close(log1mexp(logprob), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("clamp", ["official", "exact"])
def test_value_and_gradient_are_finite_at_both_ends(clamp: str) -> None:
    logprob = torch.tensor([0.0, -1e-30, -1e-7, -100.0, -1e4], requires_grad=True)
    value = log1mexp(logprob, clamp)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert logprob.grad is not None
    assert torch.isfinite(logprob.grad).all()


def test_official_clamp_has_zero_gradient_above_it_and_exact_does_not() -> None:
    for clamp, expected in (("official", 0.0), ("exact", -1 / math.expm1(4.5e-7))):
        logprob = torch.tensor([-4.5e-7], dtype=torch.float64, requires_grad=True)
        log1mexp(logprob, clamp).sum().backward()
        assert logprob.grad is not None
        assert logprob.grad.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("margin", [16.0, 18.7, 18.8, 20.0, 40.0, 60.0])
def test_exact_pushes_down_however_confident_the_model_is(margin: float) -> None:
    """In float32: the loss is the margin less log 4, and the gradient of the right logit is p."""
    logits = torch.zeros(1, 5)
    logits[0, 0] = margin
    logits.requires_grad_()
    logprob = token_stats_from_logits(logits, torch.tensor([0])).logprob_T
    loss = -log1mexp(logprob, "exact").sum()
    loss.backward()
    assert loss.item() == pytest.approx(margin - math.log(4), abs=1e-5)
    assert logits.grad is not None
    assert logits.grad[0, 0].item() == pytest.approx(1.0, abs=1e-5)


def test_official_ceiling_is_the_golden_13_8155() -> None:
    assert -log1mexp(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(13.8155105580)
