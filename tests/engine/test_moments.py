from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from megatron_reason.config.train import CheckpointConfig
from tests.distributed import spawn
from tests.engine import invariance
from tests.engine.invariance import Layout

FACTORS = (0.5, -2.0)
"""What the gradients of the two losses are, in weights."""
RATE, BETAS, EPS, CLIP = 1e-2, (0.9, 0.95), 1e-8, (0.25, 0.0)


def two_states(layout: Layout, folder: Path) -> Any:
    from megatron.core import parallel_state

    from megatron_reason.config.model import ModelConfig
    from megatron_reason.config.parallel import ParallelConfig
    from megatron_reason.config.train import OptimConfig
    from megatron_reason.engine.startup import load_model, make_trainable
    from megatron_reason.engine.topology import init_topology

    parallel = ParallelConfig(
        tensor_model_parallel_size=layout.tp, pipeline_model_parallel_size=layout.pp
    )
    if parallel_state.is_initialized():
        parallel_state.destroy_model_parallel()
    topology = init_topology(parallel)
    config = ModelConfig(path=str(folder), dtype="float32")
    stage = load_model(config, folder, parallel, topology)
    optim = OptimConfig(lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0)
    return make_trainable(stage, optim, topology, optimizer_states=2)


def step(trainable: Any, which: int) -> None:
    """A step whose gradient is a multiple of each weight, on any layout."""
    from megatron_reason.engine.optim import set_step

    for parameter in trainable.model.parameters():
        parameter.main_grad.copy_(parameter.data).mul_(FACTORS[which])
    trainable.moments.use(which)
    set_step(trainable.optimizer, rate=RATE, clip_grad=CLIP[which])
    assert trainable.optimizer.step()[0]


def exported(trainable: Any, hf_folder: Path, target: Path) -> dict[str, torch.Tensor]:
    from megatron_reason.models.exporter import export_hf

    export_hf(trainable.model.module, hf_folder, target, trainable.topology)
    dist.barrier()
    return load_file(target / "model.safetensors")


def alternate(rank: int, world_size: int, folder: Path) -> None:
    trainable = two_states(Layout(1, 1, 2), folder / "model")
    weights = {n: t.clone() for n, t in load_file(folder / "model" / "model.safetensors").items()}
    first, second = (
        torch.optim.AdamW(weights.values(), lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0)
        for _ in FACTORS
    )
    for which in (0, 1, 1, 0, 0, 1):
        step(trainable, which)
        for weight in weights.values():
            weight.grad = weight * FACTORS[which]
        if CLIP[which]:
            torch.nn.utils.clip_grad_norm_(weights.values(), CLIP[which])
        (first, second)[which].step()
    found = exported(trainable, folder / "model", folder / "after")
    assert found.keys() == weights.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, weights[name], rtol=1e-5, atol=1e-6, msg=name)


def test_two_states_step_like_two_optimizers_over_the_same_weights(tmp_path: Path) -> None:
    invariance.make_model(tmp_path / "model", tied=True)
    spawn(alternate, 2, tmp_path)


def go_on_elsewhere(
    rank: int, world_size: int, folder: Path, saved_on: Layout, loaded_on: Layout, portable: bool
) -> None:
    from megatron_reason.engine.checkpoint import Progress, load_latest
    from megatron_reason.engine.checkpoint_saver import CheckpointSaver

    model, checkpoints = folder / "model", folder / "checkpoints"
    before = two_states(saved_on, model)
    # The second has made no step at the first save, which the second save's holds.
    with CheckpointSaver(before, checkpoints, CheckpointConfig(portable=portable), "{}") as saver:
        step(before, 0)
        saver.begin(Progress(1, {}, {}))
        step(before, 0)
        step(before, 1)
        saver.begin(Progress(3, {}, {}))
    for which in (1, 0):
        step(before, which)
    expected = exported(before, model, folder / "expected")

    after = two_states(loaded_on, model)
    after.moments.use(1)
    progress = load_latest(after, checkpoints, {})
    assert progress is not None
    assert progress.update == 3
    for which in (1, 0):
        step(after, which)
    found = exported(after, model, folder / "found")
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("saved_on", "loaded_on", "portable"),
    [
        (Layout(1, 2, 1), Layout(2, 1, 1), True),
        (Layout(1, 1, 2), Layout(1, 2, 1), True),
        (Layout(1, 1, 2), Layout(1, 1, 2), False),
    ],
)
def test_both_states_come_back_on_any_layout(
    tmp_path: Path, saved_on: Layout, loaded_on: Layout, portable: bool
) -> None:
    invariance.make_model(tmp_path / "model", tied=True)
    spawn(go_on_elsewhere, 2, tmp_path, saved_on, loaded_on, portable)
