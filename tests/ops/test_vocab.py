import torch

from megatron_reason.ops.vocab import VocabShard, row_gradient, row_stats
from tests import fixture_f


def test_padding_columns_never_count() -> None:
    padded = torch.cat([fixture_f.LOGITS, torch.full((8, 3), 1e4, dtype=torch.float64)], dim=1)
    stats = row_stats(padded, fixture_f.TARGET, VocabShard.of(8, 5, None))
    torch.testing.assert_close(stats.logprob_T, fixture_f.LOGPROB, atol=1e-9, rtol=0)
    gradient = row_gradient(
        padded, fixture_f.TARGET, VocabShard.of(8, 5, None), stats, torch.ones(8).double(), None
    )
    assert (gradient[:, 5:] == 0).all()
    torch.testing.assert_close(gradient.sum(dim=1), torch.zeros(8).double(), atol=1e-12, rtol=0)


def test_minus_infinity_logits_have_no_weight_and_no_nan() -> None:
    logits = fixture_f.LOGITS.clone()
    logits[:, 4] = -torch.inf
    target = torch.tensor([0, 3, 0, 1, 2, 3, 1, 3])
    shard = VocabShard.of(5, None, None)
    stats = row_stats(logits, target, shard)
    dense = row_stats(logits[:, :4].contiguous(), target, VocabShard.of(4, None, None))
    torch.testing.assert_close(stats.logprob_T, dense.logprob_T)
    torch.testing.assert_close(stats.entropy_T, dense.entropy_T)
    ones = torch.ones(8, dtype=torch.float64)
    assert torch.isfinite(row_gradient(logits, target, shard, stats, ones, ones)).all()


def test_golden_mixed_cotangents() -> None:
    # METHODS 10.1: g_lp and g_H together, rows a1 and b2.
    g_lp = torch.tensor([0.7, -0.3, 0.2, 1.1, -0.4, 0.5, -0.9, 0.05], dtype=torch.float64)
    g_h = torch.tensor([0.3, 0.6, -0.5, 0.2, 1.0, -0.7, 0.4, 0.15], dtype=torch.float64)
    shard = VocabShard.of(5, None, None)
    stats = row_stats(fixture_f.LOGITS, fixture_f.TARGET, shard)
    gradient = row_gradient(fixture_f.LOGITS, fixture_f.TARGET, shard, stats, g_lp, g_h)
    a1 = [0.1991276527, -0.1221234584, -0.0220677183, 0.0002910931, -0.0552275691]
    b2 = [-0.0100765427, -0.7770552128, -0.0552207536, -0.0907554438, 0.9331079528]
    torch.testing.assert_close(
        gradient[0], torch.tensor(a1, dtype=torch.float64), atol=1e-8, rtol=0
    )
    torch.testing.assert_close(
        gradient[3], torch.tensor(b2, dtype=torch.float64), atol=1e-8, rtol=0
    )
