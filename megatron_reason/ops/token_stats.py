"""Per-token log-probability, entropy and divergence over a sharded vocabulary, differentiable.

The one place where log-probs are computed: every loss, every perplexity and every entropy of the
package comes from here. `token_stats` takes hidden states and the LM head and never holds [T, V]
logits beyond a byte budget; `token_stats_from_logits` takes logits that exist already.

T tokens, D hidden width, V vocabulary columns of this rank. Source: docs/token_stats.md. Not here:
the maths (`rows.py`, `vocab.py`), the schedules (`head.py`, `kernels/`), and any loss (`methods/`).
"""

import importlib.util
from collections.abc import Collection
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor

from megatron_reason.errors import PlatformError
from megatron_reason.logs import get_logger
from megatron_reason.ops.head import head_stats, logits_stats
from megatron_reason.ops.inputs import HeadOptions, Reference, Request, check_head, check_logits
from megatron_reason.ops.oracle import oracle_stats, oracle_stats_from_logits
from megatron_reason.schema.batch import Stat, TokenStats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Backend = Literal["auto", "torch", "triton", "reference"]

_LOGGER = get_logger(__name__)
_DEFAULTS = HeadOptions()
_NO_EXTRAS: frozenset[Stat] = frozenset()


def token_stats(  # noqa: PLR0913 - the public signature other code relies on
    hidden: Tensor, weight: Tensor, target: Tensor, *, tp_group: "ProcessGroup | None" = None,
    temperature: float = 1.0, vocab_size: int | None = None, backend: Backend = "auto",
    options: HeadOptions = _DEFAULTS, extras: Collection[Stat] = _NO_EXTRAS,
    reference: Reference | None = None,
) -> TokenStats:  # fmt: skip
    """Log-probability and entropy of each target under an LM head, and more if asked for.

    Args:
        hidden: [T, D] hidden states, the same on every rank of the group.
        weight: [V, D] this rank's rows of the head.
        target: [T] int64, global token ids.
        tp_group: ranks that share the vocabulary; None if this rank holds all of it.
        temperature: divides the logits, the reference's too.
        vocab_size: real vocabulary over all ranks, beyond which columns are padding; None if
            nothing is padding.
        backend: `torch` (chunked, fused backward), `triton` (logits stay in registers; needs a
            GPU), `reference` (plain autograd, the oracle of the tests), or `auto`, which is `torch`
            until `triton` has been measured on a GPU. The choice is logged once.
        options: precision, memory and checks.
        extras: further statistics, `Stat.TOP1` and `Stat.SUM_P2`; neither has a gradient.
        reference: hidden states [T, D2] and head [V, D2] of a frozen model; fills `kl_ref_T`.

    Returns:
        `TokenStats` in float32 (float64 for float64 input). Gradients flow to `hidden` (summed
        over the group) and `weight`. A target that ties for the largest logit is the top one.

    Raises:
        DataError: tensors that do not fit each other or the vocabulary, a target outside it, or
            hidden states that are not finite.
        PlatformError: a backend that does not exist, or that cannot run here.
    """
    request = Request(tp_group, vocab_size, temperature, options, extras)
    check_head(hidden, weight, target, request, reference)
    chosen = chosen_backend(backend)
    if chosen == "reference":
        return oracle_stats(hidden, weight, target, request, reference)
    if chosen == "triton":
        from megatron_reason.ops.kernels.token_stats import kernel_stats

        return kernel_stats(hidden, weight, target, request, reference)
    return head_stats(hidden, weight, target, request, reference)


def token_stats_from_logits(  # noqa: PLR0913 - the public signature other code relies on
    logits: Tensor, target: Tensor, *, tp_group: "ProcessGroup | None" = None,
    temperature: float = 1.0, vocab_size: int | None = None, backend: Backend = "auto",
    options: HeadOptions = _DEFAULTS, extras: Collection[Stat] = _NO_EXTRAS,
    reference_logits: Tensor | None = None,
) -> TokenStats:  # fmt: skip
    """Log-probability and entropy of each target from logits [T, V] of this rank's columns.

    Arguments, result and errors as in `token_stats`, but that logits are never searched for values
    that are not finite; `reference_logits` [T, V] are those of the frozen model, and the
    temperature divides both here too.
    """
    request = Request(tp_group, vocab_size, temperature, options, extras)
    check_logits(logits, target, request, reference_logits)
    if backend == "triton":
        raise PlatformError(
            "token_stats_from_logits backend 'triton'",
            "that backend multiplies by the LM head itself; it takes no logits.",
            "Use backend 'auto' or 'torch', or call token_stats with hidden states and head.",
        )
    is_oracle = _known(backend) == "reference"
    _announce("reference" if is_oracle else "torch")
    if is_oracle:
        return oracle_stats_from_logits(logits, target, request, reference_logits)
    return logits_stats(logits, target, request, reference_logits)


def chosen_backend(backend: Backend) -> Backend:
    """What `backend` stands for with an LM head, logged once.

    Raises:
        PlatformError: as in `token_stats`.
    """
    if _known(backend) == "triton" and importlib.util.find_spec("triton") is None:
        raise PlatformError(
            "token_stats backend 'triton'",
            "Triton is not installed.",
            "Use backend 'auto' or 'torch', or install triton.",
        )
    chosen: Backend = "torch" if backend == "auto" else backend
    _announce(chosen)
    return chosen


def _known(backend: str) -> str:
    if backend not in get_args(Backend):
        raise PlatformError(
            "token_stats",
            f"there is no backend called '{backend}'.",
            f"Use one of {', '.join(get_args(Backend))}.",
        )
    return backend


@lru_cache
def _announce(chosen: str) -> None:
    """Say once which backend computes the statistics."""
    _LOGGER.info("token statistics: backend '%s'", chosen)
