"""Small maths of log-probabilities, stable at both ends."""

import math
from typing import Literal

import torch
from torch import Tensor

Clamp = Literal["official", "exact"]
_OFFICIAL_MAX_LOGPROB = math.log1p(-1e-6)
_LOG_HALF = math.log(0.5)
_SMALLEST = 1e-30
"""Its inverse, a gradient, is far from overflowing in float32."""


def log1mexp(logprob_T: Tensor, clamp: Clamp = "official") -> Tensor:
    """log(1 - p) from log p, elementwise.

    Args:
        logprob_T: [T] log-probabilities, nats, at most 0.
        clamp: `official` treats p above 1 - 1e-6 as that value, with zero gradient, as OXA's
            released code does; `exact` takes log-probabilities above -1e-30 for that value, so that
            only p = 1 to all digits has no gradient.

    Returns:
        [T], same dtype; finite everywhere.

    Source: two-branch form of Maechler (2012), as in OXA's released loss.
    """
    ceiling = _OFFICIAL_MAX_LOGPROB
    if clamp == "exact":
        ceiling = -max(_SMALLEST, torch.finfo(logprob_T.dtype).tiny)
    bounded_T = logprob_T.clamp(max=ceiling)
    is_small_T = bounded_T < _LOG_HALF
    # Each branch sees only arguments it is stable for, so that neither sends NaN backwards.
    small_T = torch.where(is_small_T, bounded_T, torch.full_like(bounded_T, 2 * _LOG_HALF))
    large_T = torch.where(is_small_T, torch.full_like(bounded_T, _LOG_HALF / 2), bounded_T)
    return torch.where(
        is_small_T, torch.log1p(-torch.exp(small_T)), torch.log(-torch.expm1(large_T))
    )
