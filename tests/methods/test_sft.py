import pytest
import torch

from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import create_method
from tests.loss import loss_and_gradient

# METHODS 2.1, card SFT: values and gradients of fixture F.
GOLDEN = {
    "token_mean": (
        1.1213323412,
        [-0.0001320300, 0.0000418885, 0.0000154099, 0.0000690625, 0.0000056690],
    ),
    "seq_mean_token_mean": (
        1.0592171645,
        [-0.0000880200, 0.0000279257, 0.0000102733, 0.0000460417, 0.0000037793],
    ),
}
A1 = [-0.0546223460, 0.0258904920, 0.0095245797, 0.0035038971, 0.0157033772]


@pytest.mark.parametrize("mean", GOLDEN)
def test_golden_loss_and_gradient(mean: str) -> None:
    value, b1 = GOLDEN[mean]
    method = create_method("sft", mean=mean)
    loss, gradient = loss_and_gradient(method, (Role.DEMO,) * 4)
    assert loss == pytest.approx(value, abs=1e-9)
    torch.testing.assert_close(
        gradient[0], torch.tensor(A1, dtype=torch.float64), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(
        gradient[2], torch.tensor(b1, dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_golden_sequence_mean_of_token_sums() -> None:
    loss, _ = loss_and_gradient(create_method("sft", mean="seq_mean_token_sum"), (Role.DEMO,) * 4)
    assert loss == pytest.approx(2.2426646823, abs=1e-9)
