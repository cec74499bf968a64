"""LESE: each prompt's own mix of SFT and GRPO, by how well it is mastered and how answers differ.

Loss. Mean over prompts of (1 - alpha) L_SFT + alpha L_GRPO, alpha = min(1, l (e^M - 1) D / D_max)
if M > c, else 0; M is the share of correct rollouts, D the deviation of their total rewards.
Source: LESE (anonymous submission) eqs. 1-6.
Data. Prompts with a demonstration each; rewards with core, strict and format parts, 3.1 in all.
Expect. Nobody solves a prompt: pure SFT. Every rollout has the full reward: the prompt is skipped.
Deviations. D is the population's standard deviation, as the stated bound 1.55 = 3.1 / 2 demands;
GRPO's own advantages use the sample's. The paper's eps_low of 0.8 is read as the bound 1 - 0.2
(preset literal takes it at its word).
Skipped prompts leave the denominator, on which the paper is silent. A KL penalty or entropy bonus,
which the paper has not, belongs to L_GRPO: alpha weighs it too. By default (`tis: token`) the
policy loss of a token is multiplied by min(p_old / p_engine, 2), which the paper does not do:
`tis: none` is its own.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import pstdev
from typing import Literal

from pydantic import Field
from torch import Tensor

from megatron_reason.methods._rollout import group_advantages
from megatron_reason.methods._surrogate import (
    PolicyConfig,
    PolicyMethod,
    Surrogate,
    bonus_losses,
    penalty_losses,
    policy_terms,
)
from megatron_reason.schema.batch import PackedBatch, Role, TokenStats
from megatron_reason.schema.credit import Credit, GroupOutcome
from megatron_reason.schema.method import ChunkMean, Needs, Preset, Term, TrainState, method


class LESEConfig(PolicyConfig):
    """Configuration of LESE."""

    name: Literal["lese"] = "lese"
    """Name of the method."""
    prompts_per_update: int = Field(default=16, ge=1)
    """Prompts whose rollouts and demonstration make one optimizer update."""
    rollouts_per_prompt: int = Field(default=4, ge=1)
    """Rollouts drawn for each prompt."""
    clip_high: float | None = Field(default=0.28, ge=0)
    """Ratios above 1 + clip_high are clipped; null does not clip at all."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of -A r at negative advantages, in units of |A|; null leaves it unbounded."""
    mean: ChunkMean = "group_mean_token_mean"
    """Aggregation of the policy loss: the token mean of each prompt's rollouts."""
    mix: Literal["lese", "mastery", "diversity", "static", "random"] = "lese"
    """What sets alpha; all but `lese` are ablations."""
    scale: float = Field(default=1.8, gt=0)
    """l in eq. 6."""
    threshold: float = Field(default=0.0, ge=0)
    """c in eq. 6: at most this share correct means pure SFT."""
    max_std: float = Field(default=1.55, gt=0)
    """D_max in eq. 6: half of the largest total reward."""
    max_reward: float = Field(default=3.1, gt=0)
    """Total reward of a perfect answer."""
    static_alpha: float = Field(default=0.5, ge=0, le=1)
    """Alpha of `mix: static`."""
    skip_saturated: bool = True
    """Skip prompts all of whose rollouts have the full reward."""


_PAPER = LESEConfig(
    prompts_per_update=16, rollouts_per_prompt=4, temperature=1.0, divide_by_std=True,
    clip_low=0.2, clip_high=0.28, max_response_length=8192, kl_weight=0.0, mix="lese", scale=1.8,
    threshold=0.0, max_std=1.55, max_reward=3.1, skip_saturated=True,
)  # fmt: skip


@method
class LESE(PolicyMethod[LESEConfig]):
    """Per-prompt interpolation between SFT and GRPO."""

    config_class = LESEConfig
    needs = Needs(roles=frozenset({Role.DEMO, Role.ROLLOUT}))
    presets = (
        Preset("paper", _PAPER, "LESE (anonymous submission) eqs. 1-6 and appendix A.2"),
        Preset(
            "mastery",
            LESEConfig(mix="mastery"),
            "LESE-M, the ablation D = D_max",
            over=_PAPER,
        ),
        Preset(
            "diversity",
            LESEConfig(mix="diversity"),
            "LESE-D, the ablation e^M - 1 = 1",
            over=_PAPER,
        ),
        Preset(
            "static",
            LESEConfig(mix="static", static_alpha=0.5),
            "LESE-Static, the ablation alpha = 0.5",
            over=_PAPER,
        ),
        Preset(
            "random",
            LESEConfig(mix="random"),
            "LESE-Random, the ablation with alpha drawn from [0, 1]",
            over=_PAPER,
        ),
        Preset(
            "literal",
            LESEConfig(clip_low=0.8),
            "LESE with eps_low = 0.8, as its text prints it",
            over=_PAPER,
        ),
    )

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002 - the terms never change
        """SFT over demonstrations, GRPO over rollouts; alpha is inside the values."""
        return [
            Term("sft", over=Role.DEMO, mean="seq_mean_token_mean"),
            *policy_terms(self.config),
            Term("lese/alpha", over=Role.ROLLOUT, mean="seq_mean_token_mean", coef=0.0),
        ]

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:
        """Likelihood, and all that GRPO's loss is made of, each times its prompt's factor."""
        coef_T = batch.per_token(batch.coef_S).to(stats.logprob_T.dtype)
        surrogate = Surrogate.of(stats, batch, self.config)
        losses = {
            "sft": -stats.logprob_T,
            "pg": surrogate.loss_T(),
            **penalty_losses(stats, batch, self.config),
            **bonus_losses(stats, self.config),
        }
        weighted = {name: coef_T * loss_T for name, loss_T in losses.items()}
        return {"lese/alpha": coef_T, **surrogate.measures(), **weighted}

    def credit(self, group: GroupOutcome) -> Credit:
        """Advantages from total rewards, and alpha."""
        config = self.config
        advantages = group_advantages(group.rewards, divide_by_std=config.divide_by_std)
        if config.skip_saturated and min(group.rewards) >= config.max_reward:
            return Credit(advantages, keep_rollouts=False)
        alpha = self.alpha(group)
        return Credit(advantages, rollout_coef=alpha, demo_coef=1 - alpha, keep_demo=True)

    def alpha(self, group: GroupOutcome) -> float:
        """Weight of GRPO for this prompt, in [0, 1] (eq. 6)."""
        config = self.config
        if config.mix == "static":
            return config.static_alpha
        if config.mix == "random":
            return group.draw
        mastery = sum(group.solved) / len(group.solved)
        if mastery <= config.threshold:
            return 0.0
        growth = 1.0 if config.mix == "diversity" else math.exp(mastery) - 1
        spread = 1.0 if config.mix == "mastery" else pstdev(group.rewards) / config.max_std
        return min(1.0, config.scale * growth * spread)
