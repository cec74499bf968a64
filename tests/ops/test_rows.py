import torch

from megatron_reason.ops.rows import Cotangents, RowLogits, _slabs, row_gradient, row_stats
from megatron_reason.ops.vocab import VocabShard
from tests import fixture_f
from tests.ops.fixture_kl import REF_LOGITS

WHOLE = VocabShard.of(5, None, None)
ONES = torch.ones(8, dtype=torch.float64)


def test_padding_columns_never_count() -> None:
    padded = torch.cat([fixture_f.LOGITS, torch.full((8, 3), 1e4, dtype=torch.float64)], dim=1)
    shard = VocabShard.of(8, 5, None)
    rows = RowLogits(padded, fixture_f.TARGET)
    stats = row_stats(rows, shard)
    torch.testing.assert_close(stats.logprob_T, fixture_f.LOGPROB, atol=1e-9, rtol=0)
    gradient = row_gradient(rows, shard, stats, Cotangents(ONES))
    assert (gradient[:, 5:] == 0).all()
    torch.testing.assert_close(gradient.sum(dim=1), torch.zeros(8).double(), atol=1e-12, rtol=0)


def test_minus_infinity_logits_have_no_weight_and_no_nan() -> None:
    logits = fixture_f.LOGITS.clone()
    logits[:, 4] = -torch.inf
    ref = REF_LOGITS.clone()
    ref[:, 4] = -torch.inf
    target = torch.tensor([0, 3, 0, 1, 2, 3, 1, 3])
    rows = RowLogits(logits, target, ref)
    stats = row_stats(rows, WHOLE)
    four = RowLogits(logits[:, :4].contiguous(), target, ref[:, :4].contiguous())
    dense = row_stats(four, VocabShard.of(4, None, None))
    torch.testing.assert_close(stats.logprob_T, dense.logprob_T)
    torch.testing.assert_close(stats.entropy_T, dense.entropy_T)
    torch.testing.assert_close(stats.kl_T, dense.kl_T)
    gradient = row_gradient(rows, WHOLE, stats, Cotangents(ONES, ONES, ONES))
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 4] == 0).all()


def test_a_shard_of_minus_infinity_has_no_share() -> None:
    logits = torch.full((2, 3), -torch.inf, dtype=torch.float64)
    stats = row_stats(RowLogits(logits, torch.zeros(2, dtype=torch.int64)), VocabShard(9, 3, None))
    assert (stats.log_sum_T == -torch.inf).all()
    assert (stats.entropy_T == 0).all()


def test_golden_mixed_cotangents() -> None:
    # Golden: g_lp and g_H together, rows a1 and b2.
    g_lp = torch.tensor([0.7, -0.3, 0.2, 1.1, -0.4, 0.5, -0.9, 0.05], dtype=torch.float64)
    g_h = torch.tensor([0.3, 0.6, -0.5, 0.2, 1.0, -0.7, 0.4, 0.15], dtype=torch.float64)
    rows = RowLogits(fixture_f.LOGITS, fixture_f.TARGET)
    gradient = row_gradient(rows, WHOLE, row_stats(rows, WHOLE), Cotangents(g_lp, g_h))
    a1 = [0.1991276527, -0.1221234584, -0.0220677183, 0.0002910931, -0.0552275691]
    b2 = [-0.0100765427, -0.7770552128, -0.0552207536, -0.0907554438, 0.9331079528]
    expected = torch.tensor([a1, b2], dtype=torch.float64)
    torch.testing.assert_close(gradient[[0, 3]], expected, atol=1e-8, rtol=0)


def test_golden_gradient_of_sft_with_divergence() -> None:
    # Golden: token mean of -logp + 0.2 KL, row a1; the loss itself is 1.1278402303.
    rows = RowLogits(fixture_f.LOGITS, fixture_f.TARGET, REF_LOGITS)
    stats = row_stats(rows, WHOLE)
    assert stats.kl_T is not None
    loss = (-stats.logprob_T + 0.2 * stats.kl_T).mean()
    torch.testing.assert_close(loss.item(), 1.1278402303, atol=1e-9, rtol=0)
    gradient = row_gradient(rows, WHOLE, stats, Cotangents(-ONES / 8, None, 0.2 * ONES / 8))
    a1 = [-0.0592120400, 0.0280856118, 0.0098558902, 0.0034505845, 0.0178199535]
    torch.testing.assert_close(
        gradient[0], torch.tensor(a1, dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_golden_maxima_and_sums() -> None:
    # Golden: m and S of rows a1 and b2.
    stats = row_stats(RowLogits(fixture_f.LOGITS, fixture_f.TARGET), WHOLE)
    assert stats.max_logit_T[[0, 3]].tolist() == [2.0, 2.5]
    expected = torch.tensor([1.7761319529, 1.5788312230], dtype=torch.float64)
    torch.testing.assert_close(stats.log_sum_T[[0, 3]].exp(), expected, atol=1e-9, rtol=0)


def test_golden_probabilities() -> None:
    stats = row_stats(RowLogits(fixture_f.LOGITS, fixture_f.TARGET), WHOLE)
    golden = [0.5630212318, 0.0628814684, 0.9989437601, 0.1726161663, 0.2, 0.5350089675,
              0.2306869562, 0.8433510032]  # fmt: skip
    expected = torch.tensor(golden, dtype=torch.float64)
    torch.testing.assert_close(stats.logprob_T.exp(), expected, atol=1e-9, rtol=0)


def test_gradient_may_overwrite_the_logits() -> None:
    rows = RowLogits(fixture_f.LOGITS.clone(), fixture_f.TARGET)
    stats = row_stats(rows, WHOLE)
    apart = row_gradient(rows, WHOLE, stats, Cotangents(ONES, ONES), 0.7)
    inside = row_gradient(rows, WHOLE, stats, Cotangents(ONES, ONES), 0.7, out=rows.logits_TV)
    assert inside is rows.logits_TV
    assert torch.equal(inside, apart)


def test_off_the_cpu_no_more_than_half_a_gibibyte_of_probabilities_exists_at_once() -> None:
    """Shapes of a 7B model's batch, without memory."""
    logits = torch.empty(32768, 151936, device="meta", dtype=torch.bfloat16)
    rows = RowLogits(logits, torch.empty(32768, device="meta", dtype=torch.int64))
    places, end = [place for place, _ in _slabs(rows)], 0
    for place in places:
        assert place.start == end
        end = place.stop
        assert (place.stop - place.start) * 151936 * 4 <= 2**29
    assert end == 32768
    assert len(places) < 50, "large enough to keep it busy"
