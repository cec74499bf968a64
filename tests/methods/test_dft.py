import torch

from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import create_method
from tests import fixture_f, golden
from tests.loss import loss_and_gradient

DEMOS = (Role.DEMO,) * 4


@golden.cases("dft")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


def test_gradient_is_p_times_that_of_likelihood() -> None:
    _, plain = loss_and_gradient(create_method("dft", weight="none"), DEMOS)
    _, weighted = loss_and_gradient(create_method("dft"), DEMOS)
    prob_T = fixture_f.LOGPROB.exp()
    torch.testing.assert_close(weighted, prob_T[:, None] * plain, atol=1e-9, rtol=0)


def test_without_weight_it_is_sft() -> None:
    dft = loss_and_gradient(create_method("dft", weight="none"), DEMOS)
    sft = loss_and_gradient(create_method("sft", mean="token_mean"), DEMOS)
    assert dft[0] == sft[0]
    torch.testing.assert_close(dft[1], sft[1], atol=1e-15, rtol=0)
