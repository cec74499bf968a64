"""SFT_KL: maximum likelihood with a KL penalty to the model it started from.

Loss. L = mean -log p(x_t) + lambda mean KL_t, with KL_t = sum_j p_j (log p_j - log q_j) over the
whole vocabulary at the demonstration's positions, q the frozen base model.
Source: SRFT (arXiv 2506.19767) appendix B, eq. A1.
Data. Demonstrations, and the base model as reference.
Expect. The penalty is 0 at the start and grows as the model leaves the base.
Deviations. The paper gives neither direction, estimator nor reduction; here it is the reverse KL,
token mean. k1, k2 and k3 are offered, but the tokens are the data's, not the model's, so they do
not estimate that KL; k1 merely takes lambda off the likelihood's own gradient. The paper's Table 2
gives SFT_KL an average of 38.2 with the numbers of RL -> SFT_KL in its Table 1, but for 0.1 on
AIME24: likely one run printed twice, and no number to reach.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from megatron_reason.methods._surrogate import kl_estimate
from megatron_reason.schema.batch import PackedBatch, Role, Stat, TokenStats
from megatron_reason.schema.method import (
    Frozen,
    Mean,
    Method,
    MethodConfig,
    Needs,
    Preset,
    Term,
    TrainState,
    UpdatePlan,
    method,
)


class SFTKLConfig(MethodConfig):
    """Configuration of SFT_KL."""

    name: Literal["sft_kl"] = "sft_kl"
    """Name of the method."""
    demos_per_update: int = Field(default=128, ge=1)
    """Sequences imitated per optimizer update."""
    kl_weight: float = Field(default=0.2, ge=0)
    """Weight of the penalty (lambda in eq. A1)."""
    kl_kind: Literal["full", "k1", "k2", "k3"] = "full"
    """Divergence over the vocabulary, or an estimate from the target's log-prob alone."""
    mean: Mean = "token_mean"
    """Aggregation of both terms over the global batch."""


@method
class SFTKL(Method[SFTKLConfig]):
    """Cross-entropy on demonstrations plus a KL penalty to the base model."""

    config_class = SFTKLConfig
    needs = Needs(roles=frozenset({Role.DEMO}))
    presets = (
        Preset(
            "paper",
            SFTKLConfig(demos_per_update=128, kl_weight=0.2),
            "SRFT (arXiv 2506.19767) appendix B, eq. A1, batch of its SFT",
        ),
    )

    def required(self) -> Needs:
        """A reference model: its distributions, or its log-probs of the targets."""
        roles = self.needs.roles
        if self.config.kl_kind == "full":
            stats = frozenset({Stat.LOGPROB, Stat.KL_REF})
            return Needs(roles, stats, frozenset({Frozen.REF_HIDDEN}))
        return Needs(roles, frozen=frozenset({Frozen.REF_LOGPROB}))

    def plan(self, state: TrainState) -> UpdatePlan:  # noqa: ARG002 - the plan never changes
        """The same number of demonstrations every update."""
        return UpdatePlan({Role.DEMO: self.config.demos_per_update})

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002
        """Cross-entropy and penalty over the same tokens."""
        config = self.config
        return [
            Term("ce", over=Role.DEMO, mean=config.mean),
            Term("policy/kl_ref", over=Role.DEMO, mean=config.mean, coef=config.kl_weight),
        ]

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:
        """-log p of each target, and its KL."""
        return {"ce": -stats.logprob_T, "policy/kl_ref": self._kl_T(stats, batch)}

    def _kl_T(self, stats: TokenStats, batch: PackedBatch) -> Tensor:
        if self.config.kl_kind == "full":
            assert stats.kl_ref_T is not None, f"the engine fills {Stat.KL_REF}"
            return stats.kl_ref_T
        assert batch.ref_logprob_T is not None, f"the engine fills {Frozen.REF_LOGPROB}"
        return kl_estimate(stats.logprob_T, batch.ref_logprob_T, self.config.kl_kind)
