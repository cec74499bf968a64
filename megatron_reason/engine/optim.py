"""The optimizer, and a learning rate that is a pure function of the update index."""

import math

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer

from megatron_reason.config.train import OptimConfig
from megatron_reason.engine.moments import inner_optimizers


def learning_rate(config: OptimConfig, update: int, total_updates: int) -> float:
    """Rate of update `update` (from 0) out of `total_updates`.

    The first ceil(warmup_fraction x total) updates rise linearly to the peak, which the last of
    them reaches; the others follow the schedule down to `min_lr` after the last update.
    """
    warmup = math.ceil(config.warmup_fraction * total_updates)
    if update < warmup:
        return config.lr * (update + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    progress = (update - warmup) / max(total_updates - warmup, 1)
    share = (
        1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    )
    return config.min_lr + (config.lr - config.min_lr) * share


def build_optimizer(config: OptimConfig, model: DistributedDataParallel) -> MegatronOptimizer:
    """AdamW over `model`, its state sharded over the data-parallel ranks.

    Parameters in bfloat16 get float32 main copies; gradients and moments are float32. One-
    dimensional parameters do not decay.
    """
    dtype = next(model.parameters()).dtype
    return get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=config.lr,
            min_lr=config.min_lr,
            weight_decay=config.weight_decay,
            adam_beta1=config.betas[0],
            adam_beta2=config.betas[1],
            adam_eps=config.eps,
            clip_grad=config.clip_grad,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=True,
        ),
        [model],
    )


def set_step(optimizer: MegatronOptimizer, *, rate: float, clip_grad: float) -> None:
    """Use `rate`, and `clip_grad` as the largest gradient norm, for the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    for one in inner_optimizers(optimizer):
        one.config.clip_grad = clip_grad
