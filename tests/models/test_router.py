"""A mixture of experts trains as transformers' does, whoever holds the experts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_reason.config.train import BatchConfig
from tests.distributed import spawn
from tests.engine import invariance
from tests.models import grid, tiny


def compare(rank: int, world_size: int, root: str) -> None:
    learner, drawn = invariance.method("SFT"), invariance.samples()
    settings = [
        ("Qwen3MoeForCausalLM-untied", grid.EXPERT_LAYOUTS["TP 2 EP 2"]),
        ("Qwen3MoeForCausalLM-untied", grid.EXPERT_LAYOUTS["PP 2 EP 2"]),
        ("Qwen3MoeForCausalLM-untied", grid.EXPERT_LAYOUTS["TP 2 EP 2 ETP 1"]),
        (
            "Qwen3MoeForCausalLM-untied",
            {"context_parallel_size": 2, "expert_model_parallel_size": 2},
        ),
        # Two KV groups cut through by four ranks.
        ("Qwen2ForCausalLM-tied", grid.LAYOUTS["TP 4 PP 1"]),
    ]
    for family, sizes in settings:
        model = Path(root, family)
        loss, expected = 0.0, dict[str, Tensor]()
        if rank == 0:
            loss, whole = invariance.reference(learner, model, model, drawn)
            expected = {name: grad for n, g in whole.items() for name, grad in by_expert(n, g)}
        parallel = grid.parallel_of(sizes)
        options = parallel.model_dump(exclude_defaults=True)
        layout = invariance.Layout(
            options.pop("tensor_model_parallel_size", 1),
            options.pop("pipeline_model_parallel_size", 1), 1,
            options.pop("context_parallel_size", 1),
        )  # fmt: skip
        world = invariance.World.open(layout, model, model, **options)
        batch = BatchConfig(max_tokens_per_microbatch=64)
        measured = world.measure(learner, batch, drawn, Path(root, "scratch"))
        if measured is None:
            continue
        assert measured[0] == pytest.approx(loss, abs=1e-5)
        assert measured[1].keys() == expected.keys()
        for key, gradient in measured[1].items():
            error = (gradient.double() - expected[key]).norm() / (expected[key].norm() + 1e-9)
            assert error < 1e-4, f"{family} on {sizes}: {key} is off by {error:.1e}"


def by_expert(name: str, gradient: Tensor) -> list[tuple[str, Tensor]]:
    """transformers holds all experts of a layer in one parameter; files have one each."""
    prefix, _, last = name.rpartition("experts.")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(last)
    if not prefix or parts is None:
        return [(name, gradient)]
    return [
        (f"{prefix}experts.{expert}.{part}.weight", half)
        for expert, both in enumerate(gradient)
        for part, half in zip(parts, both.chunk(len(parts)), strict=True)
    ]


def test_gradients_are_those_of_transformers(tmp_path: Path) -> None:
    for family in ("Qwen3MoeForCausalLM-untied", "Qwen2ForCausalLM-tied"):
        tiny.make(family, tmp_path / family)
    spawn(compare, grid.PROCESSES, str(tmp_path))


def scores(rank: int, world_size: int) -> None:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_reason.config.parallel import ParallelConfig
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.models.router import Router

    init_topology(ParallelConfig())
    config = TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=1, num_moe_experts=4,
        moe_ffn_hidden_size=8, add_bias_linear=False, params_dtype=torch.bfloat16, bf16=True,
    )  # fmt: skip
    groups = ProcessGroupCollection.use_mpu_process_groups()
    router = Router(config=config, pg_collection=groups)
    generator = torch.Generator().manual_seed(1)
    router.weight.data.copy_(torch.randn(4, 8, generator=generator))
    hidden = torch.randn(5, 1, 8, generator=generator).bfloat16()
    found = router.gating(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, hidden.float() @ router.weight.float().T)


def test_scores_are_float32(tmp_path: Path) -> None:
    spawn(scores, 1)
