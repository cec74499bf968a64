from typing import Any

import pytest
from transformers import Qwen2Config

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import TopologyError
from megatron_reason.models.divisibility import check_topology

CONFIG = Qwen2Config(
    hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=67,
)  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            {"tensor_model_parallel_size": 4},
            r"4 attention heads, 2 KV groups .*48.* over 4 .*\n.*Use 1 or 2;",
        ),
        ({"tensor_model_parallel_size": 3}, "cannot all be split over 3"),
        ({"pipeline_model_parallel_size": 3}, r"4 layers .* over 3 stages.\n.*Use 1 or 2 or 4"),
        ({"sequence_parallel": True}, r"there is 1 of them.\n.*sequence_parallel: false"),
    ],
)
def test_impossible_layouts_are_refused(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        check_topology(CONFIG, ParallelConfig(**layout))


@pytest.mark.parametrize("layout", [(1, 1), (2, 1), (2, 4)])
def test_possible_layouts_pass_whatever_the_vocabulary(layout: tuple[int, int]) -> None:
    tp, pp = layout
    check_topology(
        CONFIG,
        ParallelConfig(
            tensor_model_parallel_size=tp,
            pipeline_model_parallel_size=pp,
            sequence_parallel=tp > 1,
        ),
    )
