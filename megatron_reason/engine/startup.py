"""Process groups, then seeds, then model, then optimizer: in that order, once per process.

The only reader of the launcher's rank variables. Not here: what the engine is used for.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer
from torch import nn

from megatron_reason import platform
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.train import OptimConfig
from megatron_reason.engine.moments import Moments
from megatron_reason.engine.optim import build_optimizer
from megatron_reason.engine.topology import init_topology
from megatron_reason.logs import get_logger
from megatron_reason.models.build import build_model
from megatron_reason.models.importer import import_hf
from megatron_reason.schema.topology import Topology

_LOG = get_logger(__name__)


@dataclass(frozen=True)
class Trainable:
    """A model wrapped for data parallelism, and what steps it."""

    model: DistributedDataParallel
    optimizer: MegatronOptimizer
    topology: Topology
    device: torch.device
    reference: nn.Module | None
    """This rank's stage of a frozen model, for methods that compare with one."""
    moments: Moments
    """The states of `optimizer`."""


@contextmanager
def parallel_world(
    parallel: ParallelConfig, *, seed: int, token_multiple: int = 1
) -> Iterator[Topology]:
    """Join the other processes of the job, leave them at the end.

    Rank variables come from the launcher (torchrun); without them this process is a world of one.

    Args:
        parallel: layout of the model; the remaining ranks are data parallel.
        seed: seed of every random-number generator.
        token_multiple: what the tokens on each rank shall be a multiple of.
    """
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    platform.select_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(platform.distributed_backend())
    try:
        torch.manual_seed(seed)
        topology = init_topology(parallel, seed=seed, token_multiple=token_multiple)
        _LOG.info(
            "%s on %s; optional accelerators: %s",
            topology.describe(), platform.name(), platform.accelerators(),
        )  # fmt: skip
        yield topology
        dist.barrier()
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def load_model(
    model: ModelConfig, hf_folder: Path, parallel: ParallelConfig, topology: Topology
) -> nn.Module:
    """This rank's pipeline stage with the weights of `hf_folder`, on its device."""
    stage = build_model(hf_folder, model, parallel, topology)
    import_hf(stage, hf_folder, topology)
    return stage.to(platform.device())


def make_trainable(
    stage: nn.Module, optim: OptimConfig, topology: Topology, reference: nn.Module | None = None,
    *, optimizer_states: int = 1,
) -> Trainable:  # fmt: skip
    """Wrap `stage` for training: gradients summed in float32, optimizer state sharded.

    Args:
        stage: this rank's pipeline stage.
        optim: optimizer.
        topology: this rank's place.
        reference: this rank's stage of a model that stays as it is.
        optimizer_states: sets of moments, of which every update uses one.
    """
    config: Any = stage.config
    wrapped = DistributedDataParallel(
        config=config,
        ddp_config=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=True,
            overlap_grad_reduce=False,
        ),
        module=stage,
    )
    config.finalize_model_grads_func = _finalize_gradients
    optimizer = build_optimizer(optim, wrapped)
    return Trainable(
        wrapped, optimizer, topology, platform.device(), reference=reference,
        moments=Moments(optimizer, optimizer_states),
    )  # fmt: skip


def _finalize_gradients(
    model: list[nn.Module],
    num_tokens: torch.Tensor | None,  # noqa: ARG001 - Megatron's call passes it
    **groups: Any,  # noqa: ANN401 - process groups, handed through
) -> None:
    """Megatron's reduction without its division: per-token weights hold every denominator."""
    finalize_model_grads(model, None, **groups)
