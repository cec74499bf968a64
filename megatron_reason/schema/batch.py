"""Batches and the statistics a model returns for them.

T packed tokens of one micro-batch, S sequences in it. Everything is aligned to *targets*: entry t
of each `_T` array belongs to the token `target_T[t]` that position t predicts, so no method
re-derives the shift by one. Not here: how sequences are packed (`engine/packing.py`).
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor


class Role(StrEnum):
    """What is to be done with a sequence."""

    DEMO = "demo"
    """Imitate it."""
    NEGATIVE = "negative"
    """Suppress it."""
    ROLLOUT = "rollout"
    """Reinforce it by its advantage."""


ROLE_INDEX = {role: index for index, role in enumerate(Role)}


class Stat(StrEnum):
    """Per-token statistics a method may ask for."""

    LOGPROB = "logprob"
    """Differentiable log-probability of the target, in nats."""
    ENTROPY = "entropy"
    """Differentiable entropy of the full next-token distribution, in nats."""
    KL_REF = "kl_ref"
    """Differentiable KL divergence from the model to a reference, full vocabulary, in nats."""
    TOP1 = "top1"
    """Largest probability, and whether the target has it; without gradient."""
    SUM_P2 = "sum_p2"
    """Sum of the squared probabilities (collision probability); without gradient."""


@dataclass(frozen=True)
class TokenizedSample:
    """One sequence, ready to be packed.

    `ids` is prompt then response; position t predicts `ids[t + 1]`, and the response's tokens,
    its stop token included, are the supervised ones.
    """

    sample_id: str
    role: Role
    ids: tuple[int, ...]
    num_prompt_tokens: int
    group: str = ""
    """The prompt it answers; sequences of one group share it."""
    advantage: float = 0.0
    """Advantage of each of its tokens; a constant, never differentiated."""
    is_correct: bool = False
    """Whether its final answer is correct."""
    coef: float = 1.0
    """Factor that `Method.credit` gave it."""
    old_logprobs: tuple[float, ...] | None = None
    """Log-probs of the response tokens under the policy that PPO's ratio is anchored to, nats."""
    rollout_logprobs: tuple[float, ...] | None = None
    """Log-probs of the response tokens as the generation engine reported them, nats."""

    @property
    def num_positions(self) -> int:
        """Positions that predict a token: one less than the ids."""
        return len(self.ids) - 1

    @property
    def num_targets(self) -> int:
        """Supervised tokens: those of the response."""
        return len(self.ids) - max(self.num_prompt_tokens, 1)


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: sequences laid end to end, kept apart by `cu_seqlens`."""

    ids_T: Tensor
    """int64 [T]: input tokens."""
    target_T: Tensor
    """int64 [T]: the token each position predicts; 0 where nothing is predicted."""
    position_T: Tensor
    """int64 [T]: position inside the own sequence."""
    segment_T: Tensor
    """int64 [T]: index of the own sequence, in 0..S-1; S for padding."""
    loss_mask_T: Tensor
    """bool [T]: whether the target is supervised."""
    supervised_N: Tensor
    """int64 [N]: positions where `loss_mask_T` holds; only they reach the LM head."""
    role_S: Tensor
    """int64 [S]: `ROLE_INDEX` of each sequence."""
    cu_seqlens: Tensor
    """int32 [S + 1 or S + 2]: starts of the sequences (padding last, as one of its own)."""
    max_seqlen: int
    """Longest stretch between two entries of `cu_seqlens`."""
    sample_ids: tuple[str, ...]
    """Identifiers of the S sequences."""
    index_S: Tensor
    """int64 [S]: index of each sequence in the global batch."""
    group_S: Tensor
    """int64 [S]: index of the prompt each sequence answers, among those of the global batch."""
    advantage_S: Tensor
    """[S]: advantage of each sequence."""
    is_correct_S: Tensor
    """Bool [S]: whether the final answer of each sequence is correct."""
    coef_S: Tensor
    """[S]: factor that `Method.credit` gave each sequence."""
    num_global_sequences: int
    """Sequences of the global batch, at least as many as its prompts."""
    old_logprob_T: Tensor
    """[T]: recorded log-probs under the policy that the ratio is anchored to, else 0."""
    rollout_logprob_T: Tensor
    """[T]: recorded log-probs of the generation engine, else 0."""
    ref_logprob_T: Tensor | None = None
    """[T]: log-probs under the reference model; 0 where unsupervised."""
    ref_hidden_ND: Tensor | None = None
    """[N, D]: the reference model's hidden states, for a divergence over the vocabulary."""
    coef_T: Tensor | None = None
    """[T]: what `Method.coefficients` made of the whole global batch; 0 where unsupervised."""
    is_part: bool = False
    """Whether it is a `part`, in which sequences are not whole."""

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return self.ids_T.numel()

    @property
    def num_sequences(self) -> int:
        """S."""
        return self.role_S.numel()

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch with its tensors on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return PackedBatch(**moved)

    def part(self, position_C: Tensor) -> "PackedBatch":
        """The tokens at some supervised positions; what is per sequence stays as it is.

        Args:
            position_C: int64 [C], a slice of `supervised_N`.
        """

        def optional(value_T: Tensor | None) -> Tensor | None:
            return None if value_T is None else value_T[position_C]

        return replace(
            self,
            ids_T=self.ids_T[position_C],
            target_T=self.target_T[position_C],
            position_T=self.position_T[position_C],
            segment_T=self.segment_T[position_C],
            loss_mask_T=self.loss_mask_T[position_C],
            supervised_N=torch.arange(len(position_C), device=position_C.device),
            old_logprob_T=self.old_logprob_T[position_C],
            rollout_logprob_T=self.rollout_logprob_T[position_C],
            ref_logprob_T=optional(self.ref_logprob_T),
            ref_hidden_ND=None,
            coef_T=optional(self.coef_T),
            is_part=True,
        )

    def role_mask_T(self, role: Role) -> Tensor:
        """Bool [T]: supervised positions of the sequences with `role`."""
        return self.per_token(self.role_S == ROLE_INDEX[role]) & self.loss_mask_T

    def per_token(self, value_S: Tensor) -> Tensor:
        """[T]: the value of each token's own sequence; 0 for padding."""
        return torch.cat([value_S, value_S.new_zeros(1)])[self.segment_T]

    def sequence_sums(self, value_T: Tensor) -> Tensor:
        """[S]: sum of `value_T` over the supervised tokens of each sequence.

        Raises:
            NotImplementedError: a method asks that did not declare its need.
        """
        if self.is_part:
            raise NotImplementedError(
                "a method that sums over sequences must declare Needs(whole_sequences=True)"
            )
        segment_N = self.segment_T[self.supervised_N]
        sums_S = value_T.new_zeros(self.num_sequences + 1)
        return sums_S.index_add(0, segment_N, value_T[self.supervised_N])[:-1]

    def sequence_means(self, value_T: Tensor) -> Tensor:
        """[S]: mean of `value_T` over the supervised tokens of each sequence; 0 without any."""
        return self.sequence_sums(value_T) / self.supervised_tokens_S().clamp(min=1)

    def supervised_tokens_S(self) -> Tensor:
        """int64 [S]: supervised tokens of each sequence."""
        segment_N = self.segment_T[self.supervised_N]
        return torch.bincount(segment_N, minlength=self.num_sequences + 1)[: self.num_sequences]


@dataclass(frozen=True)
class GlobalTokens:
    """The N supervised tokens of a whole global batch under the current policy, all detached.

    Floating-point values are float64, so that sums over the batch do not feel their order.
    Ordered by sample as the update lists them, then by position: the same on every rank, whatever
    the layout.
    """

    logprob_N: Tensor
    """[N]: log-probs of the targets, nats."""
    entropy_N: Tensor
    """[N]: entropies, nats."""
    old_logprob_N: Tensor | None
    """[N]: log-probs under the policy the ratio is anchored to, where the method needs them."""
    sequence_N: Tensor
    """int64 [N]: index of each token's sequence in the global batch."""
    role_S: Tensor
    """int64 [S]: `ROLE_INDEX` of each sequence of the global batch."""
    advantage_S: Tensor
    """[S]: advantage of each sequence."""
    is_correct_S: Tensor
    """Bool [S]: whether the final answer of each sequence is correct."""
    key_S: Tensor
    """int64 [S]: a number made of each sequence's id, for draws that do not feel the order."""

    def per_token(self, value_S: Tensor) -> Tensor:
        """[N]: the value of each token's own sequence."""
        return value_S[self.sequence_N]


@dataclass(frozen=True)
class TokenStats:
    """All a method ever sees of the model. float32, or float64 for float64 input."""

    logprob_T: Tensor
    """[T]: log p(target), in nats; differentiable."""
    entropy_T: Tensor
    """[T]: entropy over the whole vocabulary, in nats; differentiable."""
    kl_ref_T: Tensor | None = None
    """[T]: sum_j p_j (log p_j - log q_j) to the reference q, in nats; differentiable in p."""
    top1_prob_T: Tensor | None = None
    """[T]: largest probability; no gradient."""
    is_top1_T: Tensor | None = None
    """bool [T]: whether the target is the most probable token."""
    sum_p2_T: Tensor | None = None
    """[T]: sum of squared probabilities; no gradient."""
