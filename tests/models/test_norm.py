"""Gradients of weights that tensor-parallel ranks hold whole but see only in part.

Under sequence parallelism a norm sees some of the tokens; the query and key norms see some of the
heads under any tensor parallelism. Recomputation must change nothing.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_reason.config.train import BatchConfig
from tests.distributed import spawn
from tests.engine import invariance
from tests.models import tiny


def norms_in_one_process(rank: int, world_size: int) -> None:
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_reason.models.norm import RMSNorm

    config = TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=1, params_dtype=torch.bfloat16
    )
    norm = RMSNorm(config, 8, 1e-6)
    generator = torch.Generator().manual_seed(1)
    norm.weight.data.copy_(torch.randn(8, generator=generator))
    hidden = (100 * torch.randn(5, 8, generator=generator)).bfloat16()
    wide = hidden.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    assert norm(hidden).dtype == torch.bfloat16
    torch.testing.assert_close(norm(hidden).double(), expected, rtol=2**-7, atol=1e-3)


def test_norm_is_the_definition() -> None:
    spawn(norms_in_one_process, 1)


def compare(
    rank: int,
    world_size: int,
    layout: invariance.Layout,
    options: dict[str, Any],
    folder: str,
) -> None:
    learner, drawn = invariance.method("OXA_Full"), invariance.samples()
    model = Path(folder)
    expected_loss, expected = invariance.reference(learner, model, model, drawn)
    world = invariance.World.open(layout, model, model, **options)
    batch = BatchConfig(max_tokens_per_microbatch=64)
    measured = world.measure(learner, batch, drawn, model / "scratch")
    if measured is None:
        return
    loss, gradients = measured
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert gradients.keys() == expected.keys()
    for key, gradient in gradients.items():
        error = (gradient.double() - expected[key]).norm() / expected[key].norm()
        assert error < 1e-5, f"{key} is off by {error:.1e}"


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        (invariance.Layout(2, 1, 1), {}),
        (invariance.Layout(2, 1, 1), {"sequence_parallel": True, "recompute": "full"}),
        (invariance.Layout(2, 1, 1), {"sequence_parallel": True, "recompute": "selective"}),
        (invariance.Layout(2, 2, 1), {"sequence_parallel": True}),
    ],
    ids=["tp2", "tp2-sequence-recompute", "tp2-sequence-selective", "tp2-pp2-sequence"],
)
def test_gradients_of_norms_are_whole(
    layout: invariance.Layout, options: dict[str, Any], tmp_path: Path
) -> None:
    folder = tiny.make("Qwen3ForCausalLM-tied", tmp_path / "model")
    spawn(compare, layout.ranks, layout, options, str(folder))
