"""Router of a mixture of experts for Megatron's local spec.

Megatron's own multiplies by a function of Transformer Engine, which it misses where that is not
installed. Not here: which experts a token gets, which is Megatron's.
"""

from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor, nn


class Router(TopKRouter):
    """Megatron's top-k router with its scores in float32 by torch alone."""

    def gating(self, input: Tensor) -> Tensor:
        """[..., D] -> [..., E] scores of the experts, in float32."""
        return nn.functional.linear(input.float(), self.weight.float())
