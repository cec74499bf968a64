"""DFT: likelihood weighted by the token's own probability.

Loss. L = mean of -sg[p(x_t)] log p(x_t); the weight is a constant, so dL/dlogp = -p.
Source: DFT (arXiv 2508.05629) eq. 9, and Data Rewriting (arXiv 2509.15157) eq. 5, which is the same
loss on rewritten demonstrations
Data. Demonstrations. DR trains on its own solutions, its retellings, else on the expert's.
Expect. A loss near zero early on: p log p is small where p is small. Watch `train/nll` instead.
Deviations. The papers' equations sum over tokens (preset paper); the released code takes the token
mean of each micro-batch of 4 (preset released). By default it is the token mean of the global
batch. The released code adds up the gradients of its micro-batches, 8 on each of DFT's 8 ranks, 32
on each of DR's 2; Adam hardly feels such a factor, clipping does: divide train.optim.clip_grad by
it. It keeps parameters and Adam's moments in bfloat16 and cuts sequences at 2,048 tokens; here the
parameters' main copies and the moments are float32, and `mix` leaves longer sequences out.
`weight: probability_complement` is CHORD's p (1 - p), `none` plain likelihood.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from megatron_reason.methods._likelihood import TokenWeight, weighted_nll
from megatron_reason.schema.batch import PackedBatch, Role, TokenStats
from megatron_reason.schema.method import (
    ChunkMean,
    Method,
    MethodConfig,
    Needs,
    Preset,
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
    mean: ChunkMean = "token_mean"
    """Aggregation over the global batch."""
    chunk: int = Field(default=4, ge=1)
    """Sequences of a chunk, for the mean by chunks: a released code's micro-batch."""


@method
class DFT(Method[DFTConfig]):
    """Likelihood weighted by the token's own probability."""

    config_class = DFTConfig
    needs = Needs(roles=frozenset({Role.DEMO}))
    presets = (
        Preset(
            "paper",
            DFTConfig(demos_per_update=256, weight="probability", mean="seq_mean_token_sum"),
            "DFT (arXiv 2508.05629) eq. 9; DR (arXiv 2509.15157) eq. 5: a sum over tokens",
        ),
        Preset(
            "released",
            DFTConfig(
                demos_per_update=256, weight="probability", mean="chunk_mean_token_mean", chunk=4
            ),
            "released code of DFT and of DR: the token mean of micro-batches of 4",
        ),
    )

    def plan(self, state: TrainState) -> UpdatePlan:  # noqa: ARG002 - the plan never changes
        """The same number of demonstrations every update."""
        return UpdatePlan({Role.DEMO: self.config.demos_per_update})

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002
        """Weighted likelihood; the plain one is measured beside it."""
        mean, chunk = self.config.mean, self.config.chunk
        return [
            Term("dft", over=Role.DEMO, mean=mean, chunk=chunk),
            Term("nll", over=Role.DEMO, mean=mean, chunk=chunk, coef=0.0),
        ]

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:  # noqa: ARG002
        """-sg[weight] log p and -log p of each target."""
        weighted_T = weighted_nll(stats.logprob_T, self.config.weight)
        return {"dft": weighted_T, "nll": -stats.logprob_T.detach()}
