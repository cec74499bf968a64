from typing import Any

import pytest
from transformers import Qwen2Config, Qwen3MoeConfig

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import TopologyError
from megatron_reason.models.architecture import ARCHITECTURES
from megatron_reason.models.divisibility import check_topology

DENSE = Qwen2Config(
    hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=67,
)  # fmt: skip
MIXTURE = Qwen3MoeConfig(
    hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    vocab_size=67, num_experts=6, moe_intermediate_size=10,
)  # fmt: skip


def check(**layout: Any) -> None:
    check_topology(DENSE, ARCHITECTURES.get("Qwen2ForCausalLM"), ParallelConfig(**layout))


def check_mixture(**layout: Any) -> None:
    check_topology(MIXTURE, ARCHITECTURES.get("Qwen3MoeForCausalLM"), ParallelConfig(**layout))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            {"tensor_model_parallel_size": 8},
            r"4 attention heads, 2 KV groups .*48.* over 8 .*\n.*Use 1 or 2 or 4;",
        ),
        ({"tensor_model_parallel_size": 3}, "cannot all be split over 3"),
        ({"pipeline_model_parallel_size": 3}, r"4 layers .* over 3 stages.\n.*Use 1 or 2 or 4"),
        ({"sequence_parallel": True}, r"there is 1 of them.\n.*sequence_parallel: false"),
        ({"expert_model_parallel_size": 2}, r"no experts can be split over 2 ranks.\n.*Use 1\."),
    ],
)
def test_impossible_layouts_are_refused(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        check(**layout)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"expert_model_parallel_size": 4}, r"6 experts .* over 4 ranks.\n.*Use 1 or 2 or 3 or 6"),
        ({"tensor_model_parallel_size": 4}, r"width 10 .* over 4 ranks.\n.*Use 1 or 2\."),
        ({"tensor_model_parallel_size": 2}, r"under tensor parallelism.*\n.*parallel: true"),
        ({"tensor_model_parallel_size": 8}, "4 attention heads, 2 KV groups cannot"),
    ],
)
def test_impossible_layouts_of_experts_are_refused(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        check_mixture(**layout)


@pytest.mark.parametrize("layout", [(1, 1), (2, 1), (4, 1), (2, 4)])
def test_possible_layouts_pass_whatever_the_vocabulary(layout: tuple[int, int]) -> None:
    tp, pp = layout
    check(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, sequence_parallel=tp > 1)
    check_mixture(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, sequence_parallel=tp > 1,
        expert_model_parallel_size=3, expert_tensor_parallel_size=min(tp, 2),
    )  # fmt: skip


def test_groups_and_ranks_must_be_multiples_of_each_other() -> None:
    uneven = Qwen2Config(
        hidden_size=48, intermediate_size=48, num_hidden_layers=4, num_attention_heads=12,
        num_key_value_heads=4, vocab_size=67,
    )  # fmt: skip
    family = ARCHITECTURES.get("Qwen2ForCausalLM")
    with pytest.raises(TopologyError, match=r"4 KV groups.*over 6 .*\n.*Use 1 or 2 or 4;"):
        check_topology(uneven, family, ParallelConfig(tensor_model_parallel_size=6))


@pytest.mark.parametrize(
    ("layout", "least"),
    [
        ({}, 1),
        ({"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 3}, 6),
        ({"tensor_model_parallel_size": 2, "expert_model_parallel_size": 2}, 4),
        (
            {
                "tensor_model_parallel_size": 2, "expert_model_parallel_size": 2,
                "expert_tensor_parallel_size": 1,
            },
            2,
        ),
        ({"expert_model_parallel_size": 3, "pipeline_model_parallel_size": 2}, 6),
    ],
)  # fmt: skip
def test_ranks_that_hold_every_weight(layout: dict[str, int], least: int) -> None:
    parallel = ParallelConfig.model_validate(layout)
    assert parallel.model_size == least
    dense = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    assert parallel.data_parallel_size(2 * least) == 2 * least // dense
    with pytest.raises(TopologyError, match=r"processes cannot hold"):
        parallel.data_parallel_size(2 * least + 1) if least > 1 else parallel.model_copy(
            update={"pipeline_model_parallel_size": 2}
        ).data_parallel_size(3)
