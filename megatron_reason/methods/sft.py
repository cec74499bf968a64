"""SFT: maximum likelihood on demonstrations.

Loss. L = mean of -log p(x_t).
Source: SRFT (arXiv 2506.19767) eq. 1, OXA (arXiv 2603.16206) eq. 3
Data. Demonstrations. Which ones makes the baseline: a random selection is SFT, the lowest
perplexities are SFT_LP, OXA's Gaussian selection with this loss is OXA_MLE.
Expect. Entropy on the demonstrations falls; low-perplexity data teach little.
Deviations. The default aggregation is that of OXA's released code, a mean over sequences of token
means. Stock trainers take the token mean, which gives a chain of 30k tokens 30 times the weight of
one of 1k.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

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


class SFTConfig(MethodConfig):
    """Configuration of SFT."""

    name: Literal["sft"] = "sft"
    """Name of the method."""
    demos_per_update: int = Field(default=128, ge=1)
    """Sequences imitated per optimizer update."""
    mean: Mean = "seq_mean_token_mean"
    """Aggregation of the cross-entropy over the global batch."""


@method
class SFT(Method[SFTConfig]):
    """Cross-entropy on demonstrations."""

    config_class = SFTConfig
    needs = Needs(roles=frozenset({Role.DEMO}))

    def plan(self, state: TrainState) -> UpdatePlan:  # noqa: ARG002 - the plan never changes
        """The same number of demonstrations every update."""
        return UpdatePlan({Role.DEMO: self.config.demos_per_update})

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002
        """Cross-entropy alone."""
        return [Term("ce", over=Role.DEMO, mean=self.config.mean)]

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:  # noqa: ARG002
        """-log p of each target."""
        return {"ce": -stats.logprob_T}
