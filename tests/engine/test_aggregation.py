from dataclasses import replace

import pytest
import torch

from megatron_reason.engine.aggregation import global_counts, token_weights, weighted_loss
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import Term
from megatron_reason.schema.topology import Topology
from tests import fixture_f

CPU = torch.device("cpu")


@pytest.mark.parametrize("mean", ["token_mean", "seq_mean_token_mean"])
def test_weights_of_a_mean_sum_to_one_over_any_split(mean: str) -> None:
    term = Term("ce", over=Role.DEMO, mean=mean)
    parts = [fixture_f.batch((Role.DEMO,) * 2, (0, 1)), fixture_f.batch((Role.DEMO,) * 2, (2, 3))]
    counts = global_counts([term], parts, Topology(), CPU)
    assert counts["ce"].sequences == 4
    assert counts["ce"].tokens == 8
    total = sum(float(token_weights(term, part, counts).sum()) for part in parts)
    assert total == pytest.approx(1.0, abs=1e-15)


def test_chunks_weigh_by_their_sequences_whatever_the_split() -> None:
    """Chunks of 3 neighbours: of A, B, (C) two sequences with 5 tokens, of D one with 2."""
    term = Term("ce", over=Role.DEMO, mean="chunk_mean_token_mean", chunk=3)
    roles = (Role.DEMO, Role.DEMO, Role.NEGATIVE, Role.DEMO)
    whole = fixture_f.batch(roles)
    expected = torch.tensor([*[2 / 3 / 5] * 5, 0.0, *[1 / 3 / 2] * 2], dtype=torch.float64)
    counts = global_counts([term], [whole], Topology(), CPU)
    torch.testing.assert_close(token_weights(term, whole, counts), expected)

    first = fixture_f.batch((roles[3], roles[0]), (3, 0))
    second = fixture_f.batch(roles[1:3], (1, 2))
    first = replace(first, index_S=torch.tensor([3, 0]), num_global_sequences=4)
    second = replace(second, index_S=torch.tensor([1, 2]), num_global_sequences=4)
    counts = global_counts([term], [first, second], Topology(), CPU)
    torch.testing.assert_close(token_weights(term, first, counts), expected[[6, 7, 0, 1]])
    torch.testing.assert_close(token_weights(term, second, counts), expected[2:6])


def test_official_per_token_weights_of_oxa() -> None:
    # OXA_Full on fixture F: A 0.25, C 0.5, B 1.6667e-5, D 2.5e-5 at alpha = 1e-4.
    batch = fixture_f.batch((Role.DEMO, Role.NEGATIVE, Role.DEMO, Role.NEGATIVE))
    ce = Term("ce", over=Role.DEMO, mean="seq_mean_token_mean")
    ul = Term("ul", over=Role.NEGATIVE, mean="seq_mean_token_mean", coef=1e-4)
    counts = global_counts([ce, ul], [batch], Topology(), CPU)
    weight = token_weights(ce, batch, counts) + ul.coef * token_weights(ul, batch, counts)
    expected = [0.25, 0.25, *[1e-4 / 6] * 3, 0.5, 2.5e-5, 2.5e-5]
    torch.testing.assert_close(
        weight, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_masked_tokens_get_no_gradient_even_from_infinite_losses() -> None:
    batch = fixture_f.batch((Role.DEMO, Role.NEGATIVE, Role.DEMO, Role.NEGATIVE))
    term = Term("ce", over=Role.DEMO, mean="token_mean")
    counts = global_counts([term], [batch], Topology(), CPU)
    value = torch.ones(8, dtype=torch.float64, requires_grad=True)
    poisoned = torch.where(batch.role_mask_T(Role.DEMO), value, value * torch.inf)
    loss, _ = weighted_loss([term], {"ce": poisoned}, batch, counts)
    (gradient,) = torch.autograd.grad(loss, poisoned)
    assert loss.item() == pytest.approx(1.0)
    assert (gradient[~batch.role_mask_T(Role.DEMO)] == 0).all()


def test_a_term_without_tokens_is_zero() -> None:
    batch = fixture_f.batch((Role.DEMO,) * 4)
    term = Term("ul", over=Role.NEGATIVE, mean="seq_mean_token_mean")
    counts = global_counts([term], [batch], Topology(), CPU)
    losses = {"ul": torch.full((8,), torch.nan, requires_grad=True)}
    loss, _ = weighted_loss([term], losses, batch, counts)
    assert loss.item() == 0.0


def test_terms_and_losses_must_agree() -> None:
    batch = fixture_f.batch((Role.DEMO,) * 4)
    term = Term("ce", over=Role.DEMO, mean="token_mean")
    counts = global_counts([term], [batch], Topology(), CPU)
    with pytest.raises(AssertionError, match="token_losses returned"):
        weighted_loss([term], {"xe": torch.zeros(8)}, batch, counts)
