"""Likelihood of demonstrations, each token weighted by a constant made of its own probability.

Source: DFT (arXiv 2508.05629) eq. 9, weight p; CHORD (arXiv 2508.11408) eq. 6, weight p (1 - p).
"""

from typing import Literal

from torch import Tensor

TokenWeight = Literal["none", "probability", "probability_complement"]


def weighted_nll(logprob_T: Tensor, weight: TokenWeight) -> Tensor:
    """-sg[w] log p, elementwise; its derivative in log p is -w.

    Args:
        logprob_T: [T] log-probs of the targets, nats.
        weight: w is 1, p, or p (1 - p).
    """
    if weight == "none":
        return -logprob_T
    prob_T = logprob_T.detach().exp()
    weight_T = prob_T if weight == "probability" else prob_T * (1 - prob_T)
    return -weight_T * logprob_T
