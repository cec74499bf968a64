import math

import pytest
import torch

from megatron_reason.rollout.mismatch import mismatch


def test_values_by_hand() -> None:
    """Ratios 2, 1/2 and 1: K3 is (1 - ln 2 + ln 2 - 1/2 + 0) / 3, ESS is 3.5**2 / (3 * 5.25)."""
    engine = torch.tensor([-1.0, -2.0, -0.5])
    found = mismatch(engine + torch.tensor([math.log(2), -math.log(2), 0.0]), engine)
    assert found.num_tokens == 3
    assert found.mean == pytest.approx(2 * math.log(2) / 3)
    assert found.p99 == found.max == pytest.approx(math.log(2))
    assert found.k3 == pytest.approx(0.5 / 3)
    assert found.ess == pytest.approx(3.5**2 / (3 * 5.25))


def test_k3_estimates_the_divergence_of_the_engine_from_the_trainer() -> None:
    generator = torch.Generator().manual_seed(0)
    engine, trainer = (torch.randn(2, 50, generator=generator) * 0.3).log_softmax(-1)
    drawn = torch.multinomial(engine.exp(), 200_000, replacement=True, generator=generator)
    found = mismatch(trainer[drawn], engine[drawn])
    expected = (engine.exp() * (engine - trainer)).sum().item()
    assert found.k3 == pytest.approx(expected, rel=0.02)
    expected_ess = 1 / (trainer.exp().square() / engine.exp()).sum().item()
    assert found.ess == pytest.approx(expected_ess, rel=0.02)


def test_agreement_is_zero_and_one() -> None:
    logprobs = -torch.rand(1000)
    found = mismatch(logprobs, logprobs)
    assert (found.mean, found.p99, found.max, found.k3, found.ess) == (0, 0, 0, 0, 1)


def test_p99_leaves_out_the_largest_hundredth() -> None:
    engine = torch.zeros(200)
    trainer = torch.arange(1, 201).double() / -1000
    found = mismatch(trainer, engine)
    assert found.p99 == pytest.approx(0.198)
    assert found.max == pytest.approx(0.2)


def test_impossible_tokens_are_counted_and_do_not_spoil_the_rest() -> None:
    engine = torch.tensor([-1.0, -math.inf, -2.0, -1.0])
    trainer = torch.tensor([-1.1, -3.0, math.nan, -80.0])
    found = mismatch(trainer, engine)
    assert (found.num_tokens, found.num_nonfinite) == (2, 2)
    assert all(math.isfinite(value) for value in found.metrics().values())
    assert found.metrics()["mismatch/nonfinite_tokens"] == 2
    with pytest.raises(ValueError, match="none of 1 tokens"):
        mismatch(trainer[2:3], engine[2:3])
    with pytest.raises(ValueError, match="shape"):
        mismatch(trainer, engine[:2])


def test_names_are_those_of_the_metrics_page() -> None:
    logged = mismatch(torch.zeros(1), torch.zeros(1)).metrics()
    assert {"mismatch/logprob_abs_diff", "mismatch/k3_kl", "mismatch/ess"} <= logged.keys()
