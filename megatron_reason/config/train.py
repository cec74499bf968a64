"""How a training stage spends its updates: batches, optimizer, schedule, checkpoints."""

from typing import Literal, Self

from pydantic import Field, model_validator

from megatron_reason.config.base import Strict
from megatron_reason.config.parallel import ParallelConfig


class BatchConfig(Strict):
    """Section `train.batch`. How many sequences an update takes is the method's to say."""

    max_tokens_per_microbatch: int = Field(default=4096, ge=1)
    """Tokens packed into one micro-batch; no sequence may be longer."""
    max_sequences_per_microbatch: int | None = Field(default=None, ge=1)
    """Sequences packed into one micro-batch; 1 switches packing off, None sets no limit."""


class OptimConfig(Strict):
    """Section `train.optim`: AdamW with a rate that is a pure function of the update index."""

    lr: float = Field(..., gt=0)
    """Peak learning rate."""
    min_lr: float = Field(default=0.0, ge=0)
    """Rate at the last update of a decaying schedule."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """Share of the updates during which the rate rises from 0."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    skip_grad_norm: float | None = Field(default=None, gt=0)
    """Updates whose gradient norm before clipping is above this are left out, and counted by
    `train/steep_skipped`; null leaves none out."""


class KeepConfig(Strict):
    """Section `train.checkpoint.keep`: which checkpoints stay on disk; any of the three suffices.

    None is deleted before the newest has been verified.
    """

    last: int = Field(default=1, ge=1)
    """The most recent ones."""
    every: int | None = Field(default=None, ge=1)
    """Those after a multiple of so many updates; None keeps no further ones."""
    best: str | None = None
    """The one with the best mean of this metric since the checkpoint before, e.g. train/loss; of a
    metric `eval/...`, the one with the best value, measured at that very update. At the end its
    weights are in `huggingface_best`."""
    best_is: Literal["lowest", "highest"] = "lowest"
    """Which value of that metric is best."""


class CheckpointConfig(Strict):
    """Section `train.checkpoint`."""

    every: int = Field(default=50, ge=1)
    """Updates between two checkpoints; the last update always writes one."""
    keep: KeepConfig = KeepConfig()
    """Which of them stay."""
    asynchronous: bool = True
    """Train on while a checkpoint is written; the last one is always waited for."""
    portable: bool = True
    """Store optimizer states by parameter, so that TP and PP may change on resuming, not DP alone;
    one rank of each data-parallel group then needs 24 bytes of host memory a parameter to save."""


class TrainConfig(Strict):
    """Section `train`."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the scarcest role of the table; this or `updates`."""
    updates: int | None = Field(default=None, ge=1)
    """Optimizer updates; this or `epochs`."""
    batch: BatchConfig = BatchConfig()
    """Micro-batches."""
    optim: OptimConfig
    """Optimizer and schedule."""
    parallel: ParallelConfig = ParallelConfig()
    """Layout of the model over the processes."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save and how much to keep."""
    max_nonfinite_updates: int = Field(default=3, ge=0)
    """Consecutive updates with non-finite gradients that are skipped before the run stops."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.updates is None):
            raise ValueError("give exactly one of 'epochs' and 'updates'")
        return self
