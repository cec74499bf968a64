import pytest
import torch

from megatron_reason.ops.rows import RowLogits, row_stats
from megatron_reason.ops.vocab import RowStats, VocabShard, concatenated, merge
from tests import fixture_f
from tests.ops.fixture_kl import KL_REF, REF_LOGITS


def whole_from(
    cuts: tuple[int, ...], logits: torch.Tensor = fixture_f.LOGITS, ref: torch.Tensor = REF_LOGITS
) -> RowStats:
    """Statistics (of fixture F) merged from parts of the vocabulary that end at `cuts`."""
    parts = []
    for begin, end in zip((0, *cuts[:-1]), cuts, strict=True):
        rows = RowLogits(logits[:, begin:end], fixture_f.TARGET, ref[:, begin:end])
        parts.append(row_stats(rows, VocabShard(begin, end - begin, None), sum_p2=True))
    names = parts[0].fields()[0]
    stacked = (torch.stack(values) for values in zip(*(p.fields()[1] for p in parts), strict=True))
    return merge(RowStats(**dict(zip(names, stacked, strict=True))))


@pytest.mark.parametrize("cuts", [(5,), (3, 5), (1, 2, 3, 4, 5), (2, 2, 5)])
def test_parts_of_the_vocabulary_merge_into_the_golden_numbers(cuts: tuple[int, ...]) -> None:
    stats = whole_from(cuts)
    prob = torch.softmax(fixture_f.LOGITS, dim=1)
    for found, expected in (
        (stats.logprob_T, fixture_f.LOGPROB),
        (stats.entropy_T, fixture_f.ENTROPY),
        (stats.kl_T, KL_REF),
        (stats.sum_p2_T, prob.square().sum(dim=1)),
        (stats.top1_prob_T, prob.amax(dim=1)),
    ):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert stats.is_top1_T.tolist() == [True, False, True, False, True, True, False, True]


def test_a_part_of_minus_infinity_changes_nothing() -> None:
    nothing = torch.full((8, 2), -torch.inf, dtype=torch.float64)
    logits, ref = (torch.cat([x, nothing], dim=1) for x in (fixture_f.LOGITS, REF_LOGITS))
    stats, plain = whole_from((3, 5, 7), logits, ref), whole_from((3, 5))
    for found, expected in zip(stats.fields()[1], plain.fields()[1], strict=True):
        assert torch.equal(found, expected)


def test_an_offset_common_to_a_row_costs_no_digit() -> None:
    rows = RowLogits((fixture_f.LOGITS * 8).round().float() + 3e4, fixture_f.TARGET)
    stats = row_stats(rows, VocabShard.of(5, None, None))
    plain = row_stats(
        RowLogits((fixture_f.LOGITS * 8).round().float(), fixture_f.TARGET),
        VocabShard.of(5, None, None),
    )
    assert torch.equal(stats.logprob_T, plain.logprob_T)
    assert torch.equal(stats.entropy_T, plain.entropy_T)


def test_chunks_of_tokens_follow_each_other() -> None:
    stats = row_stats(RowLogits(fixture_f.LOGITS, fixture_f.TARGET), VocabShard.of(5, None, None))
    again = concatenated([stats[slice(0, 3)], stats[slice(3, 8)]])
    assert again.sum_p2_T is None
    assert torch.equal(again.entropy_T, stats.entropy_T)


def test_a_target_is_found_on_one_shard_only() -> None:
    target = torch.tensor([0, 3, 4, 5, 7])
    column, is_here = VocabShard(start=4, num_valid=2, group=None).local_target(target)
    assert column.tolist() == [0, 0, 0, 1, 0]
    assert is_here.tolist() == [False, False, True, True, False]
