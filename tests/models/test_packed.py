import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_reason.models.packed import own_places, pack_of


def starts_of(pieces: list[int], cp_size: int) -> torch.Tensor:
    """Starts of sequences of so many tokens a piece."""
    lengths = [0, *(2 * cp_size * piece for piece in pieces)]
    return torch.tensor(lengths).cumsum(0, dtype=torch.int32)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(2, 4))
def test_ranks_hold_every_token_once_and_see_all_before_it(pieces: list[int], cp_size: int) -> None:
    starts = starts_of(pieces, cp_size)
    held = [own_places(starts, rank, cp_size) for rank in range(cp_size)]
    whole = torch.cat(held)
    assert sorted(whole.tolist()) == list(range(int(starts[-1])))
    assert len({len(part) for part in held}) == 1
    for rank, own in enumerate(held):
        pack = pack_of(starts, 0, cp_rank=rank, cp_size=cp_size)
        assert pack.key_rows is not None
        assert sum(pack.query_lengths) == len(own)
        seen = whole[pack.key_rows].split(pack.key_lengths)
        for queries, keys in zip(own.split(pack.query_lengths), seen, strict=True):
            (begin,) = {int(starts[starts <= place].max()) for place in queries}
            assert keys.tolist() == list(range(begin, int(queries[-1]) + 1))


def test_all_ranks_attend_to_about_as_much() -> None:
    starts = starts_of([100, 7], 4)
    pairs: list[int] = []
    for rank in range(4):
        pack = pack_of(starts, 0, cp_rank=rank, cp_size=4)
        sizes = zip(pack.query_lengths, pack.key_lengths, strict=True)
        pairs.append(sum(queries * keys for queries, keys in sizes))
    assert max(pairs) == min(pairs)


def test_a_pack_without_context_parallelism_is_its_sequences() -> None:
    pack = pack_of(torch.tensor([0, 5, 6, 12], dtype=torch.int32), 6)
    assert pack.query_lengths == pack.key_lengths == (5, 1, 6)
    assert pack.key_rows is None


@pytest.mark.parametrize(("rank", "expected"), [(0, [0, 3, 4, 5, 10, 11]), (1, [1, 2, 6, 7, 8, 9])])
def test_a_rank_holds_one_piece_from_each_end(rank: int, expected: list[int]) -> None:
    assert own_places(starts_of([1, 2], 2), rank, 2).tolist() == expected
