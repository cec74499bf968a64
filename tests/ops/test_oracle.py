import torch

from megatron_reason.ops.inputs import HeadOptions, Request
from megatron_reason.ops.oracle import head_logits, oracle_stats, oracle_stats_from_logits
from megatron_reason.schema.batch import Stat
from tests import fixture_f
from tests.ops.fixture_kl import KL_REF, REF_LOGITS

REQUEST = Request(None, None, 1.0, HeadOptions(), frozenset({Stat.TOP1, Stat.SUM_P2}))


def test_golden_values() -> None:
    stats = oracle_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET, REQUEST, REF_LOGITS)
    prob = torch.softmax(fixture_f.LOGITS, dim=1)
    for found, expected in (
        (stats.logprob_T, fixture_f.LOGPROB),
        (stats.entropy_T, fixture_f.ENTROPY),
        (stats.kl_ref_T, KL_REF),
        (stats.top1_prob_T, prob.amax(dim=1)),
        (stats.sum_p2_T, prob.square().sum(dim=1)),
    ):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert stats.is_top1_T is not None
    assert stats.is_top1_T.tolist() == [True, False, True, False, True, True, False, True]


def test_a_head_that_is_the_identity_changes_nothing_and_gets_its_gradient() -> None:
    eye = torch.eye(5, dtype=torch.float64, requires_grad=True)
    hidden = fixture_f.LOGITS.clone().requires_grad_()
    stats = oracle_stats(hidden, eye, fixture_f.TARGET, REQUEST, None)
    torch.testing.assert_close(stats.logprob_T, fixture_f.LOGPROB, atol=1e-9, rtol=0)
    stats.logprob_T.sum().backward()
    slope = torch.nn.functional.one_hot(fixture_f.TARGET, 5) - torch.softmax(hidden.detach(), 1)
    torch.testing.assert_close(hidden.grad, slope)
    torch.testing.assert_close(eye.grad, slope.T @ fixture_f.LOGITS)


def test_float32_logits_of_bfloat16_operands_are_not_rounded() -> None:
    hidden, weight = torch.tensor([[1.0, 2.0**-9]]).bfloat16(), torch.ones(1, 2).bfloat16()
    wide = Request(None, None, 1.0, HeadOptions(fp32_logits=True))
    assert head_logits(hidden, weight, wide).item() == 1 + 2.0**-9
    assert head_logits(hidden, weight, REQUEST).item() == 1
