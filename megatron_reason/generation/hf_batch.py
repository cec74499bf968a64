"""Sequences that a transformers model continues together; each joins and leaves by itself.

The cache is aligned at its right edge: shorter sequences begin with padding, which nothing attends
to. A sequence that ends leaves its place to one that waits, and padding that nobody needs any more
is cut off. Not here: which sequences wait, and how a token is chosen (`hf_engine.py`).

B sequences, L positions of the cache, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

_PAD = 0


@dataclass
class Row:
    """One sequence on its way."""

    ids: tuple[int, ...]
    """Its prompt."""
    limit: int
    """Most tokens that may be drawn, at least 1."""
    generator: torch.Generator
    """Its own source of noise."""
    place: tuple[int, int]
    """Number of the prompt, and of the sample among the prompt's."""
    token_ids: list[int] = field(default_factory=list[int])
    """Tokens drawn so far."""
    logprobs: list[float] = field(default_factory=list[float])
    """What is told of each of them."""

    @property
    def length(self) -> int:
        """Positions it has by now, the newest token's included."""
        return len(self.ids) + len(self.token_ids)


Draw = Callable[[Tensor, Sequence[torch.Generator]], tuple[Tensor, Tensor]]
"""(logits [B, V], a generator each) -> token ids [B], log-probs to be told [B]."""


class RunningBatch:
    """The sequences under way.

    Args:
        model: a causal language model of transformers whose layers all attend.
        draw: chooses tokens.
        stop_token_ids: tokens that end a sequence.
    """

    def __init__(self, model: Any, draw: Draw, stop_token_ids: Sequence[int]) -> None:  # noqa: ANN401
        self._model = model
        self._draw = draw
        self._stops = frozenset(stop_token_ids)
        self._rows: list[Row] = []
        # Without a configuration every layer keeps all positions, sliding windows included: their
        # masks are made from distances, which padding on the left does not change.
        self._cache = DynamicCache()
        self._mask_BL = torch.empty(0)
        self._logits_BV = torch.empty(0)

    def __len__(self) -> int:
        return len(self._rows)

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> None:
        """Take sequences in; equal prompts are read once."""
        prompts = list(dict.fromkeys(row.ids for row in rows))
        number = {ids: index for index, ids in enumerate(prompts)}
        which_B = torch.tensor([number[row.ids] for row in rows], device=self._model.device)
        longest = max(map(len, prompts))
        ids_PL = self._tensor([[_PAD] * (longest - len(ids)) + list(ids) for ids in prompts])
        mask_PL = self._tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
        cache = DynamicCache()
        position_PL = (mask_PL.cumsum(1) - 1).clamp(min=0)
        logits_BV = self._logits(ids_PL, mask_PL, position_PL, cache)[which_B]
        cache.batch_select_indices(which_B)
        mask_BL = mask_PL[which_B]
        if self._rows:
            mask_BL = torch.cat(_aligned(self._mask_BL, mask_BL))
            logits_BV = torch.cat([self._logits_BV, logits_BV])
            _prepend(self._cache, cache)
        self._rows += rows
        self._cache, self._mask_BL, self._logits_BV = cache, mask_BL, logits_BV

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Draw one token for each sequence; those that have ended leave and are returned."""
        token_B, told_B = self._draw(self._logits_BV, [row.generator for row in self._rows])
        for row, token, told in zip(self._rows, token_B.tolist(), told_B.tolist(), strict=True):
            row.token_ids.append(token)
            row.logprobs.append(told)
        ended = [self._has_ended(row) for row in self._rows]
        finished = [row for row, is_over in zip(self._rows, ended, strict=True) if is_over]
        if finished:
            self._keep([index for index, is_over in enumerate(ended) if not is_over])
        if self._rows:
            self._advance()
        return finished

    def _has_ended(self, row: Row) -> bool:
        return row.token_ids[-1] in self._stops or len(row.token_ids) == row.limit

    def _keep(self, indices: list[int]) -> None:
        """Let go of all other sequences, and of positions that only they needed."""
        self._rows = [self._rows[index] for index in indices]
        if not indices:
            self._cache = DynamicCache()
            return
        kept = torch.tensor(indices, device=self._mask_BL.device)
        self._cache.batch_select_indices(kept)
        # The newest tokens are not in the cache yet.
        needed = max(row.length for row in self._rows) - 1
        self._mask_BL = self._mask_BL[kept, -needed:]
        for layer in _layers(self._cache):
            layer.keys, layer.values = layer.keys[:, :, -needed:], layer.values[:, :, -needed:]

    def _advance(self) -> None:
        ids_B = self._tensor([row.token_ids[-1] for row in self._rows])
        position_B = self._tensor([row.length - 1 for row in self._rows])
        self._mask_BL = functional.pad(self._mask_BL, (0, 1), value=1)
        self._logits_BV = self._logits(
            ids_B[:, None], self._mask_BL, position_B[:, None], self._cache
        )

    def _logits(
        self, ids_BL: Tensor, mask_BL: Tensor, position_BL: Tensor, cache: DynamicCache
    ) -> Tensor:
        output = self._model(
            input_ids=ids_BL, attention_mask=mask_BL, position_ids=position_BL,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        return output.logits[:, -1].float()

    def _tensor(self, values: object) -> Tensor:
        return torch.tensor(values, device=self._model.device)


def _prepend(first: DynamicCache, second: DynamicCache) -> None:
    """Put the sequences of `first` before those of `second`, in `second`; empties `first`."""
    for before, layer in zip(_layers(first), _layers(second), strict=True):
        layer.keys = torch.cat(_aligned(before.keys, layer.keys, dim=-2))
        layer.values = torch.cat(_aligned(before.values, layer.values, dim=-2))
        before.keys = before.values = None


def _layers(cache: DynamicCache) -> list[Any]:
    return cache.layers


def _aligned(first: Tensor, second: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Both with zeros before the shorter one, along `dim`."""
    longest = max(first.shape[dim], second.shape[dim])
    behind = (0, 0) * (-1 - dim)
    return (
        functional.pad(first, (*behind, longest - first.shape[dim], 0)),
        functional.pad(second, (*behind, longest - second.shape[dim], 0)),
    )
