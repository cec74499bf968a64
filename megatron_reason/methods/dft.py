"""DFT: likelihood weighted by the token's own probability.

Loss. L = mean of -sg[p(x_t)] log p(x_t); the weight is a constant, so dL/dlogp = -p.
Source: DFT (arXiv 2508.05629) eq. 9, and Data Rewriting (arXiv 2509.15157) eq. 5, which is the same
loss on rewritten demonstrations
Data. Demonstrations. DR trains on its own solutions, its retellings, else on the expert's.
Expect. A loss near zero early on: p log p is small where p is small. Watch `train/nll` instead.
Deviations. The paper's eq. 5 sums over tokens; the released code takes the token mean of each
micro-batch and adds up the micro-batches' gradients. Here it is the token mean of the global batch.
`weight: probability_complement` is CHORD's p (1 - p), `none` plain likelihood.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from megatron_reason.methods._likelihood import TokenWeight, weighted_nll
from megatron_reason.schema.batch import PackedBatch, Role, TokenStats
from megatron_reason.schema.method import (
    Mean,
    Method,
    MethodConfig,
    Needs,
    Term,
    TrainState,
    UpdatePlan,
    method,
)


class DFTConfig(MethodConfig):
    """Configuration of DFT."""

    name: Literal["dft"] = "dft"
    """Name of the method."""
    demos_per_update: int = Field(default=256, ge=1)
    """Sequences imitated per optimizer update."""
    weight: TokenWeight = "probability"
    """Constant factor of each token's likelihood: p, p (1 - p), or 1."""
    mean: Mean = "token_mean"
    """Aggregation over the global batch."""


@method
class DFT(Method[DFTConfig]):
    """Likelihood weighted by the token's own probability."""

    config_class = DFTConfig
    needs = Needs(roles=frozenset({Role.DEMO}))

    def plan(self, state: TrainState) -> UpdatePlan:  # noqa: ARG002 - the plan never changes
        """The same number of demonstrations every update."""
        return UpdatePlan({Role.DEMO: self.config.demos_per_update})

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002
        """Weighted likelihood; the plain one is measured beside it."""
        return [
            Term("dft", over=Role.DEMO, mean=self.config.mean),
            Term("nll", over=Role.DEMO, mean=self.config.mean, coef=0.0),
        ]

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:  # noqa: ARG002
        """-sg[weight] log p and -log p of each target."""
        weighted_T = weighted_nll(stats.logprob_T, self.config.weight)
        return {"dft": weighted_T, "nll": -stats.logprob_T.detach()}
