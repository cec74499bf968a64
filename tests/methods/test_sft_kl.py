import pytest
import torch

from megatron_reason.schema.batch import Role, Stat
from megatron_reason.schema.method import Frozen, create_method
from tests import fixture_f, golden
from tests.loss import run

DEMOS = fixture_f.batch((Role.DEMO,) * 4)


@golden.cases("sft_kl")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


def test_at_the_base_model_there_is_no_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixture_f, "REF_LOGITS", fixture_f.LOGITS)
    loss, gradient, means = run(create_method("sft_kl"), DEMOS)
    plain, expected, _ = run(create_method("sft", mean="token_mean"), DEMOS)
    assert means["policy/kl_ref"] == pytest.approx(0.0, abs=1e-15)
    assert loss == pytest.approx(plain, abs=1e-15)
    torch.testing.assert_close(gradient, expected, atol=1e-15, rtol=0)


def test_k1_only_rescales_the_likelihood() -> None:
    _, gradient, _ = run(create_method("sft_kl", kl_kind="k1"), DEMOS)
    _, plain, _ = run(create_method("sft", mean="token_mean"), DEMOS)
    torch.testing.assert_close(gradient, 0.8 * plain, atol=1e-15, rtol=0)
    assert gradient[0, 0].item() == pytest.approx(-0.0436978768, abs=1e-9)


def test_needs_distributions_or_log_probs_of_a_reference() -> None:
    full = create_method("sft_kl").required()
    assert full.frozen == {Frozen.REF_HIDDEN}
    assert Stat.KL_REF in full.stats
    assert create_method("sft_kl", kl_kind="k3").required().frozen == {Frozen.REF_LOGPROB}
