import torch

from megatron_reason.methods._likelihood import weighted_nll


def test_derivative_is_the_weight() -> None:
    logprob_T = torch.tensor([-0.1, -2.0, -30.0], dtype=torch.float64, requires_grad=True)
    prob_T = logprob_T.detach().exp()
    for weight, expected in (
        ("none", torch.ones(3, dtype=torch.float64)),
        ("probability", prob_T),
        ("probability_complement", prob_T * (1 - prob_T)),
    ):
        loss_T = weighted_nll(logprob_T, weight)
        (gradient,) = torch.autograd.grad(loss_T.sum(), logprob_T)
        torch.testing.assert_close(gradient, -expected)
        torch.testing.assert_close(loss_T.detach(), -expected * logprob_T.detach())
