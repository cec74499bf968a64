"""Clip-Cov and KL-Cov: keep entropy up by restraining the tokens that drive it down.

Loss. With cov_t = (A_t - mean A)(log p_t - mean log p) over the batch: Clip-Cov drops a random few
of the tokens with a large covariance from PPO's loss; KL-Cov takes -A r without a clip and adds
beta |log p - log p_old| to the tokens of largest covariance.
Source: the entropy mechanism of RL (arXiv 2505.22617) eqs. 9-13
Data. Fresh rollouts, graded, and several updates per batch of rollouts: KL-Cov does nothing in the
first one, where log p = log p_old.
Expect. Entropy that falls more slowly, or not at all.
Deviations. The released code takes the means, the random choice and the largest covariances within
each micro-batch; by default they are taken over the global batch. `scope: chunk` takes them within
chunks of so many neighbouring sequences, whatever the layout. The authors' recipe is DAPO's, where
other prompts replace those whose rollouts are all right or all wrong. The presets have its loss,
batch and clip, but not that: such prompts stay, with advantage 0, and count in every mean. KL-Cov
as released takes the smaller of its percentage and the number of tokens, which binds only above
1 %; it is left out. By default (`tis: token`) the loss of a token, KL-Cov's penalty included, is
multiplied by min(p_old / p_engine, 2), which neither paper nor released code does: `tis: none` is
theirs.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from megatron_reason.methods._surrogate import (
    PolicyConfig,
    PolicyMethod,
    Surrogate,
    bonus_losses,
    penalty_losses,
    policy_terms,
)
from megatron_reason.schema.batch import GlobalTokens, PackedBatch, Role, TokenStats
from megatron_reason.schema.method import Frozen, Needs, Preset, Term, TrainState, method


class CovConfig(PolicyConfig):
    """Configuration of Clip-Cov and KL-Cov."""

    name: Literal["cov"] = "cov"
    """Name of the method."""
    mode: Literal["clip", "kl"] = "clip"
    """Drop tokens (Clip-Cov) or penalise them (KL-Cov)."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of -A r at negative advantages, in units of |A|; null leaves it unbounded."""
    old_policy: Literal["prepass"] = "prepass"
    """Anchor of the ratio: the trainer's own log-probs."""
    clip_fraction: float = Field(default=2e-4, ge=0, le=1)
    """Clip-Cov: share of all tokens that is dropped, at least one if any qualifies."""
    cov_low: float = 1.0
    """Clip-Cov: smallest covariance that qualifies."""
    cov_high: float = 5.0
    """Clip-Cov: largest covariance that qualifies."""
    kl_fraction: float = Field(default=2e-3, ge=0, le=1)
    """KL-Cov: share of all tokens that is penalised, at least one."""
    kl_beta: float = Field(default=1.0, ge=0)
    """KL-Cov: weight of the penalty."""
    scope: Literal["batch", "chunk"] = "batch"
    """Tokens whose means the covariance takes and among which tokens are chosen: all of the global
    batch, or those of each `chunk` neighbouring sequences."""

    @property
    def clips(self) -> bool:
        """Whether ratios are clipped: KL-Cov has no clip."""
        return self.mode == "clip" and super().clips


_ODD = 0x1E3779B97F4A7C15
"""A multiple of it moves every bit."""

_AUTHORS = CovConfig(
    prompts_per_update=32, rollouts_per_prompt=8, temperature=1.0, clip_low=1.0, clip_high=1.0,
    dual_clip=None, mean="token_mean",
)  # fmt: skip
_VERL = CovConfig(clip_low=0.2, clip_high=0.2, dual_clip=None, mean="token_mean")


@method
class Cov(PolicyMethod[CovConfig]):
    """Clip-Cov and KL-Cov."""

    config_class = CovConfig
    needs = Needs(
        roles=frozenset({Role.ROLLOUT}),
        frozen=frozenset({Frozen.OLD_LOGPROB, Frozen.COEFFICIENTS}),
    )

    presets = (
        Preset(
            "clip_cov",
            CovConfig(mode="clip", clip_fraction=2e-4, cov_low=1.0, cov_high=5.0),
            "Clip-Cov of arXiv 2505.22617 and its released code",
            over=_AUTHORS,
        ),
        Preset(
            "kl_cov",
            CovConfig(mode="kl", kl_fraction=2e-3, kl_beta=1.0),
            "KL-Cov of arXiv 2505.22617 and its released code, at 7B",
            over=_AUTHORS,
        ),
        Preset(
            "kl_cov_32b",
            CovConfig(mode="kl", kl_fraction=2e-4, kl_beta=1.0),
            "KL-Cov of arXiv 2505.22617 and its released code, at 32B",
            over=_AUTHORS,
        ),
        Preset(
            "verl_clip_cov",
            CovConfig(mode="clip", clip_fraction=2e-4, cov_low=1.0, cov_high=5.0),
            "Clip-Cov with verl's defaults, which clip as PPO does",
            over=_VERL,
        ),
        Preset(
            "verl_kl_cov",
            CovConfig(mode="kl", kl_fraction=2e-4, kl_beta=0.1),
            "KL-Cov with verl's defaults",
            over=_VERL,
        ),
    )

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002 - the terms never change
        """One policy term, and what the settings add; how many tokens were chosen is measured."""
        return [
            *policy_terms(self.config),
            Term("policy/cov_chosen", over=Role.ROLLOUT, mean="token_mean", coef=0.0),
        ]

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:
        """The surrogate without the chosen tokens, or with their penalty."""
        assert batch.coef_T is not None, f"the engine fills {Frozen.COEFFICIENTS}"
        is_chosen_T = batch.coef_T > 0
        surrogate = Surrogate.of(stats, batch, self.config)
        if self.config.mode == "clip":
            losses_T = torch.where(is_chosen_T, 0.0, surrogate.loss_T())
        else:
            distance_T = (stats.logprob_T - surrogate.old_logprob_T).abs()
            penalty_T = torch.where(is_chosen_T, self.config.kl_beta * distance_T, 0.0)
            losses_T = -surrogate.advantage_T * surrogate.ratio_T + penalty_T
            if surrogate.weight_T is not None:
                losses_T = surrogate.weight_T * losses_T
        return {
            "pg": losses_T,
            **surrogate.measures(),
            "policy/cov_chosen": is_chosen_T.to(losses_T.dtype),
            **penalty_losses(stats, batch, self.config),
            **bonus_losses(stats, self.config),
        }

    def coefficients(self, whole: GlobalTokens, state: TrainState) -> Tensor:
        """[N]: 1 for the chosen tokens, 0 for the others."""
        draw_N = _draws(whole, state.seed * 1_000_003 + state.update)
        coef_N = torch.zeros_like(whole.logprob_N)
        size = len(whole.role_S) if self.config.scope == "batch" else self.config.chunk
        chunk_N = whole.sequence_N // size
        for chunk in chunk_N.unique():
            places = (chunk_N == chunk).nonzero()[:, 0]
            coef_N[places[self._chosen(whole, places, draw_N[places])]] = 1.0
        return coef_N

    def _chosen(self, whole: GlobalTokens, places: Tensor, draw_N: Tensor) -> Tensor:
        """Which of the tokens at `places` are chosen, as indices of `places`."""
        advantage_N = whole.per_token(whole.advantage_S).to(whole.logprob_N.dtype)[places]
        logprob_N = whole.logprob_N[places]
        cov_N = (advantage_N - advantage_N.mean()) * (logprob_N - logprob_N.mean())
        if self.config.mode == "kl":
            count = max(1, int(self.config.kl_fraction * len(cov_N)))
            return cov_N.topk(min(count, len(cov_N))).indices
        assert whole.old_logprob_N is not None, f"the engine fills {Frozen.OLD_LOGPROB}"
        ratio_N = (logprob_N - whole.old_logprob_N[places]).exp()
        return self._drawn(self._qualifies(cov_N, advantage_N, ratio_N), draw_N)

    def _qualifies(self, cov_N: Tensor, advantage_N: Tensor, ratio_N: Tensor) -> Tensor:
        """Bool [N]: covariance within bounds, and PPO's clip leaves the token alone."""
        low, high = self.config.clip_low, self.config.clip_high
        is_free_N = torch.ones_like(cov_N, dtype=torch.bool)
        if low is not None:
            is_free_N &= (advantage_N >= 0) | (ratio_N >= 1 - low)
        if high is not None:
            is_free_N &= (advantage_N <= 0) | (ratio_N <= 1 + high)
        return is_free_N & (cov_N > self.config.cov_low) & (cov_N < self.config.cov_high)

    def _drawn(self, qualifies_N: Tensor, draw_N: Tensor) -> Tensor:
        """Indices of a uniform choice among the tokens that qualify: those of the lowest draws."""
        candidates = qualifies_N.nonzero()[:, 0]
        count = max(1, int(self.config.clip_fraction * len(qualifies_N)))
        return candidates[draw_N[candidates].argsort()[:count]]


def _draws(whole: GlobalTokens, seed: int) -> Tensor:
    """int64 [N]: a random number of each token's sequence, its place in it, and the seed.

    A choice by these does not depend on the order of the sequences. Source: the mixing steps of
    splitmix64, whose products wrap around.
    """
    count_S = torch.bincount(whole.sequence_N, minlength=len(whole.key_S))
    first_S = count_S.cumsum(0) - count_S
    place_N = torch.arange(len(whole.sequence_N), device=first_S.device) - whole.per_token(first_S)
    mixed_N = _mixed(whole.per_token(whole.key_S + whole.key_S.new_tensor(seed) * _ODD))
    return _mixed(mixed_N + place_N * _ODD)


def _mixed(bits_N: Tensor) -> Tensor:
    """int64 [N]: every bit depends on every bit of the argument."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        bits_N = (bits_N ^ _shifted(bits_N, shift)) * factor
    return bits_N ^ _shifted(bits_N, 31)


def _shifted(bits_N: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left, as unsigned numbers are."""
    return (bits_N >> by) & ((1 << (64 - by)) - 1)
