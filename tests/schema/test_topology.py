import pytest

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import TopologyError
from megatron_reason.schema.topology import Topology


@pytest.mark.parametrize(
    ("topology", "sequence", "pack"),
    [
        (Topology(), 5, 5),
        (Topology(tp_size=4), 5, 8),
        (Topology(cp_size=2), 8, 8),
        (Topology(tp_size=2, cp_size=3), 6, 12),
        (Topology(tp_size=2, token_multiple=16), 5, 32),
    ],
)
def test_tokens_are_filled_up_so_that_ranks_share_them_equally(topology, sequence, pack):
    assert topology.rounding.of_sequence(5) == sequence
    assert topology.rounding.of_pack(sequence) == pack
    assert topology.rounding.of_pack(0) > 0, "an empty micro-batch is something, too"


def test_one_rank_of_all_speaks():
    last = {"pp_rank": 1, "pp_size": 2}
    assert Topology(**last).speaks
    for silent in ({"pp_rank": 0}, {"tp_rank": 1}, {"dp_rank": 1}, {"cp_rank": 1}):
        assert not Topology(**{**last, **silent}).speaks


def test_ranks_that_share_sequences_are_no_copies():
    parallel = ParallelConfig(tensor_model_parallel_size=2, context_parallel_size=3)
    assert (parallel.model_size, parallel.sample_size) == (6, 6)
    assert parallel.data_parallel_size(12) == 2
    with pytest.raises(TopologyError, match=r"8 processes .* TP 2 x PP 1 x CP 3.\n.*multiple of 6"):
        parallel.data_parallel_size(8)
    # Experts may lie across the ranks that share sequences.
    experts = ParallelConfig(context_parallel_size=2, expert_model_parallel_size=4)
    assert (experts.model_size, experts.data_parallel_size(4)) == (4, 2)
