"""How far the engine's log-probs of rollouts are from the trainer's, and what makes them differ.

Source: k3 of Schulman's note on approximating KL; the effective sample size is Kish's. Not here:
the correction, which is a factor of the loss (`tis` of the policy-gradient methods).

T sampled tokens.
"""

from dataclasses import dataclass

from torch import Tensor

_MAX_LOG_RATIO = 20.0
_QUANTILE = 0.99


@dataclass(frozen=True)
class Mismatch:
    """Differences between the trainer's and the engine's log-probs of the same tokens, in nats."""

    num_tokens: int
    """Tokens that were compared."""
    num_nonfinite: int
    """Tokens left out because either side is not a finite number; a healthy run has none."""
    mean: float
    """Mean |difference|."""
    p99: float
    """What 99 of 100 |differences| stay below or at."""
    max: float
    """Largest |difference|."""
    k3: float
    """Mean of r - 1 - log r with r = p_trainer / p_engine: estimates KL(engine || trainer)."""
    ess: float
    """Effective sample size of the weights r as a share of the tokens: 1 when sides agree."""

    def metrics(self) -> dict[str, float]:
        """The same under the names that are logged."""
        return {
            "mismatch/logprob_abs_diff": self.mean,
            "mismatch/logprob_abs_diff_p99": self.p99,
            "mismatch/logprob_abs_diff_max": self.max,
            "mismatch/k3_kl": self.k3,
            "mismatch/ess": self.ess,
            "mismatch/nonfinite_tokens": float(self.num_nonfinite),
        }


def mismatch(trainer_T: Tensor, engine_T: Tensor) -> Mismatch:
    """Compare log-probs of the sampled tokens of a step.

    Args:
        trainer_T: log-probabilities under the trainer's policy of the version that sampled.
        engine_T: what the engine returned for the same tokens, of the same temperature.

    Raises:
        ValueError: different numbers of tokens, or no token that is finite on both sides.
    """
    if trainer_T.shape != engine_T.shape or trainer_T.dim() != 1:
        raise ValueError(f"log-probs of shape {trainer_T.shape} and {engine_T.shape}")
    is_finite_T = trainer_T.isfinite() & engine_T.isfinite()
    if not is_finite_T.any():
        raise ValueError(f"none of {len(trainer_T)} tokens has two finite log-probs")
    log_ratio_T = (trainer_T.double() - engine_T.double())[is_finite_T]
    gap_T = log_ratio_T.abs()
    clamped_T = log_ratio_T.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    weight_T = clamped_T.exp()
    count = len(log_ratio_T)
    rank = max(1, -int(-_QUANTILE * count // 1))
    return Mismatch(
        num_tokens=count,
        num_nonfinite=len(trainer_T) - count,
        mean=gap_T.mean().item(),
        p99=gap_T.kthvalue(rank).values.item(),
        max=gap_T.max().item(),
        k3=(weight_T - 1 - clamped_T).mean().item(),
        ess=(weight_T.sum().square() / (count * weight_T.square().sum())).item(),
    )
