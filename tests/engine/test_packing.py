import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_reason.config.train import BatchConfig
from megatron_reason.engine.packing import assign, microbatches_of_rank, pack
from megatron_reason.errors import DataError
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.topology import Rounding


def sample(name: str, prompt: int, response: int, role: Role = Role.DEMO) -> TokenizedSample:
    first = 10 * (ord(name) - ord("a") + 1)
    return TokenizedSample(name, role, tuple(range(first, first + prompt + response)), prompt)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(60, 200),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 4)),
)
def test_every_sequence_is_placed_once_and_limits_hold(
    lengths: list[int], budget: int, ranks: int, most: int | None
) -> None:
    limits = BatchConfig(max_tokens_per_microbatch=budget, max_sequences_per_microbatch=most)
    shares = assign(lengths, limits, ranks)
    placed = sorted(i for share in shares for members in share for i in members)
    assert placed == list(range(len(lengths)))
    assert len({len(share) for share in shares}) == 1
    for members in (m for share in shares for m in share):
        assert sum(lengths[i] for i in members) <= budget
        assert most is None or len(members) <= most


def test_ranks_share_the_work_even_when_one_microbatch_would_do() -> None:
    shares = assign([10] * 8, BatchConfig(max_tokens_per_microbatch=1000), 2)
    assert [len(share[0]) for share in shares] == [4, 4]


def test_pack_aligns_everything_to_targets() -> None:
    batch = pack([sample("a", 2, 2), sample("b", 1, 2, Role.NEGATIVE)], rounding=Rounding(pack=4))
    assert batch.ids_T.tolist() == [10, 11, 12, 20, 21, 0, 0, 0]
    assert batch.target_T.tolist() == [11, 12, 13, 21, 22, 0, 0, 0]
    assert batch.position_T.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert batch.segment_T.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert batch.loss_mask_T.tolist() == [False, True, True, True, True, False, False, False]
    assert batch.supervised_N.tolist() == [1, 2, 3, 4]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 8]
    assert batch.max_seqlen == 3
    assert batch.role_mask_T(Role.NEGATIVE).nonzero()[:, 0].tolist() == [3, 4]


def test_an_empty_microbatch_is_one_masked_token() -> None:
    batch = pack([], rounding=Rounding(pack=2))
    assert batch.num_tokens == 2
    assert batch.num_sequences == 0
    assert not batch.loss_mask_T.any()


def test_a_prompt_less_sample_leaves_its_first_token_unscored() -> None:
    batch = pack([TokenizedSample("x", Role.DEMO, (5, 6, 7), 0)])
    assert batch.target_T[batch.supervised_N].tolist() == [6, 7]


def test_ranks_together_hold_every_token_once() -> None:
    samples = [sample(name, 3, n) for name, n in zip("abcdefg", (4, 9, 2, 7, 5, 3, 8), strict=True)]
    limits = BatchConfig(max_tokens_per_microbatch=16)
    shares = [microbatches_of_rank(samples, limits, rank=r, num_ranks=2) for r in range(2)]
    names = sorted(name for share in shares for batch in share for name in batch.sample_ids)
    assert names == list("abcdefg")
    total = sum(int(b.loss_mask_T.sum()) for share in shares for b in share)
    assert total == sum(s.num_targets for s in samples)
    assert torch.equal(shares[0][0].ids_T, shares[0][0].to(torch.device("cpu")).ids_T)


def test_a_sequence_longer_than_a_microbatch_is_refused() -> None:
    with pytest.raises(DataError, match="a sequence of 50 tokens does not fit"):
        assign([50], BatchConfig(max_tokens_per_microbatch=49), 1)
