"""RMSNorm for Megatron's local spec, with sequence parallelism, which Megatron's own refuses."""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, accumulated in float32 whatever x is.

    Under sequence parallelism every tensor-parallel rank sees other tokens; the mark on the weight
    makes Megatron sum its gradient over them.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float,
        **unused: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        del unused
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., D], same dtype."""
        return nn.functional.rms_norm(hidden, (hidden.shape[-1],), self.weight, self.eps)
