import pytest
import torch

from megatron_reason.errors import DataError
from megatron_reason.ops.head import HeadGradient, chunks_of, head_stats, logits_stats
from megatron_reason.ops.inputs import HeadOptions, Request
from tests import fixture_f


def request(options: HeadOptions = HeadOptions()) -> Request:  # noqa: B008 - frozen
    return Request(None, None, 1.0, options)


def test_gradients_of_chunks_add_up() -> None:
    torch.manual_seed(0)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.bfloat16, 2e-2)):
        hidden, weight = torch.randn(7, 3).to(dtype), torch.randn(5, 3).to(dtype)
        grad = torch.randn(7, 5).to(dtype)
        total = HeadGradient(request(), hidden, weight)
        for rows in (slice(0, 4), slice(4, 7)):
            total.add(rows, grad[rows], torch.ones(len(grad[rows]), dtype=torch.bool))
        grad_hidden, grad_weight = total.totals()
        assert grad_hidden is not None
        assert grad_weight is not None
        for found, expected in (
            (grad_hidden, grad.double() @ weight.double()),
            (grad_weight, grad.double().T @ hidden.double()),
        ):
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


def test_a_frozen_head_costs_no_gradient() -> None:
    hidden = fixture_f.LOGITS.clone().requires_grad_()
    eye = torch.eye(5, dtype=torch.float64)
    head_stats(hidden, eye, fixture_f.TARGET, request(), None).logprob_T.sum().backward()
    given = fixture_f.LOGITS.clone().requires_grad_()
    logits_stats(given, fixture_f.TARGET, request(), None).logprob_T.sum().backward()
    torch.testing.assert_close(hidden.grad, given.grad)
    assert HeadGradient(request(), hidden, eye, wants_weight=False).totals()[1] is None


def test_saved_logits_may_be_asked_for_twice() -> None:
    # The first backward pass overwrites them; the second has to compute them again.
    hidden = fixture_f.LOGITS.clone().requires_grad_()
    eye = torch.eye(5, dtype=torch.float64)
    entropy = head_stats(hidden, eye, fixture_f.TARGET, request(), None).entropy_T.sum()
    (first,) = torch.autograd.grad(entropy, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(entropy, hidden)
    assert torch.equal(first, second)
    assert torch.equal(hidden.detach(), fixture_f.LOGITS)


def test_logits_that_may_be_overwritten_become_their_gradient_once() -> None:
    grads: list[torch.Tensor] = []
    for overwrite in (False, True):
        leaf = fixture_f.LOGITS.clone().requires_grad_()
        logits = leaf * 1.0
        options = HeadOptions(overwrite_logits=overwrite)
        stats = logits_stats(logits, fixture_f.TARGET, request(options), None)
        loss = (stats.logprob_T - stats.entropy_T).sum()
        (grad,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        grads.append(grad)
        assert torch.equal(logits.detach(), grad if overwrite else fixture_f.LOGITS)
    assert torch.equal(grads[0], grads[1])
    with pytest.raises(DataError, match="overwritten"):
        torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize(
    ("num_tokens", "summed", "fp32_logits", "sizes"),
    [
        (0, torch.bfloat16, False, [0]),
        (4, torch.bfloat16, False, [4]),
        (8, torch.bfloat16, False, [8]),
        (9, torch.bfloat16, False, [4, 4, 1]),
        (8, torch.bfloat16, True, [4, 4]),
        (8, torch.float32, False, [4, 4]),
        (8, None, False, [4, 4]),
    ],
)
def test_two_chunks_are_one_where_their_sum_would_be_wider(
    num_tokens: int, summed: torch.dtype | None, fp32_logits: bool, sizes: list[int]
) -> None:
    options = HeadOptions(tokens_per_chunk=4, fp32_logits=fp32_logits)
    chunks = chunks_of(num_tokens, Request(None, None, 1.0, options), summed)
    assert [rows.stop - rows.start for rows in chunks] == sizes
    assert [rows.start for rows in chunks[1:]] == [rows.stop for rows in chunks[:-1]]
