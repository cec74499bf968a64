"""What a caller hands to the token statistics: options, and checks before anything is computed.

T tokens, D hidden width, V vocabulary columns of this rank. Every check is one pass over [T] or
[T, D]. Ranks then tell each other what they found, in three numbers, so that all refuse what any
of them refuses and none waits in a collective for another. Not here: checks of logits, which would
cost a pass over [T, V].
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_reason.errors import DataError
from megatron_reason.schema.batch import Stat

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Reference = tuple[Tensor, Tensor]
"""Hidden states [T, D2] and LM head [V, D2] of the frozen model a divergence is taken to."""


@dataclass(frozen=True)
class HeadOptions:
    """Precision and memory of the LM head; none of them changes what is computed."""

    fp32_logits: bool = False
    """Multiply in float32 whatever the operands' dtype (scoring, mismatch studies)."""
    tokens_per_chunk: int = 512
    """Tokens whose logits exist at once, or up to twice as many where that makes them one chunk and
    their gradient is summed in bfloat16. On a CPU 1,024 are no faster and take twice the memory."""
    saved_logits_bytes: int = 256 * 2**20
    """Logits kept for the backward pass; chunks beyond are recomputed."""
    overwrite_logits: bool = False
    """Let the backward pass of `token_stats_from_logits` write the gradient over the logits, which
    are lost by it; it can then run only once."""
    check: bool = True
    """Look for targets out of range and hidden states that are not finite, and have the ranks of a
    group agree on what is refused, by one small collective; on a GPU this waits for the device.
    Shapes and types are always checked, without it by each rank alone."""


@dataclass(frozen=True)
class Request:
    """What is asked of one call, apart from its tensors."""

    tp_group: "ProcessGroup | None"
    vocab_size: int | None
    temperature: float
    options: HeadOptions
    extras: Collection[Stat] = ()

    @property
    def sum_p2(self) -> bool:
        """Whether squared probabilities are summed."""
        return Stat.SUM_P2 in self.extras


def check_head(
    hidden: Tensor, weight: Tensor, target: Tensor, request: Request, reference: Reference | None
) -> None:
    """Refuse what `token_stats` cannot compute on.

    Raises:
        DataError: on every rank of the group, unless `options.check` is off: shapes or types that
            do not fit, a shard that does not fit the vocabulary or the other ranks', a target
            outside it, or hidden states that are not finite; the first position is named.
    """
    sizes = _size(weight, 0), _size(hidden, 0)
    _alike(
        lambda: _check_head(hidden, weight, target, request, reference), sizes, hidden.device,
        request,
    )  # fmt: skip


def _check_head(
    hidden: Tensor, weight: Tensor, target: Tensor, request: Request, reference: Reference | None
) -> None:
    _check_pair("hidden", hidden, "weight", weight, request.options)
    _check_common(weight.shape[0], len(hidden), hidden.device, target, request)
    if reference is not None:
        _check_pair("reference hidden", reference[0], "reference weight", reference[1],
                    request.options)  # fmt: skip
        expected = (len(hidden), len(weight))
        if (found := (len(reference[0]), len(reference[1]))) != expected:
            raise DataError(
                "token_stats reference",
                f"it has {found[0]} tokens and {found[1]} vocabulary columns on this rank; the "
                f"model has {expected[0]} and {expected[1]}.",
                "Pass the reference's hidden states at the same positions, and its head sharded "
                "and padded like the model's.",
            )
    _check_extras(request, has_reference=reference is not None)
    if request.options.check:
        _check_finite("hidden", hidden)
        if reference is not None:
            _check_finite("reference hidden", reference[0])


def check_logits(
    logits: Tensor, target: Tensor, request: Request, reference_logits: Tensor | None
) -> None:
    """Refuse what `token_stats_from_logits` cannot compute on; values are not looked at.

    Raises:
        DataError: as for `check_head`.
    """
    sizes = _size(logits, 1), _size(logits, 0)
    _alike(
        lambda: _check_logits(logits, target, request, reference_logits), sizes, logits.device,
        request,
    )  # fmt: skip


def _size(tensor: Tensor, axis: int) -> int:
    """Length of an axis; 0 of one that a tensor, refused for it, does not have."""
    return tensor.shape[axis] if axis < tensor.ndim else 0


def _alike(
    check: Callable[[], None], sizes: tuple[int, int], device: torch.device, request: Request
) -> None:
    """Refuse on every rank what `check` refuses on any, and sizes that differ.

    Args:
        check: raises a DataError for what this rank has.
        sizes: vocabulary columns and tokens of this rank.
        device: where the ranks of the group can exchange tensors.
        request: names the group.
    """
    if request.tp_group is None or not request.options.check:
        check()
        return
    error: DataError | None = None
    try:
        check()
    except DataError as found:
        error = found
    mine = torch.tensor([error is None, *sizes], device=device)
    gathered = [torch.empty_like(mine) for _ in range(request.tp_group.size())]
    dist.all_gather(gathered, mine, group=request.tp_group)
    is_fine_R, columns_R, tokens_R = torch.stack(gathered, dim=1).tolist()
    if error is not None:
        raise error
    if not all(is_fine_R):
        refusing = [rank for rank, is_fine in enumerate(is_fine_R) if not is_fine]
        raise DataError(
            "token_stats",
            f"rank(s) {refusing} of tp_group refuse what they were given; this rank would not.",
            "Read their message.",
        )
    for what, found in (("vocabulary columns", columns_R), ("tokens", tokens_R)):
        if len(set(found)) > 1:
            raise DataError(
                "token_stats",
                f"the ranks of tp_group have {found} {what}.",
                f"Pass the same number of {what} on every rank; pad the last shard of a vocabulary "
                "and give vocab_size.",
            )


def _check_logits(
    logits: Tensor, target: Tensor, request: Request, reference_logits: Tensor | None
) -> None:
    _check_matrix("logits", logits)
    _check_common(logits.shape[1], len(logits), logits.device, target, request)
    if reference_logits is not None:
        _check_matrix("reference logits", reference_logits)
        if reference_logits.shape != logits.shape:
            raise DataError(
                "token_stats reference",
                f"its logits are {_shape(reference_logits)}, the model's {_shape(logits)}.",
                "Pass the reference's logits at the same positions and vocabulary columns.",
            )
    _check_extras(request, has_reference=reference_logits is not None)


def _check_pair(
    hidden_name: str, hidden: Tensor, weight_name: str, weight: Tensor, options: HeadOptions
) -> None:
    _check_matrix(hidden_name, hidden)
    _check_matrix(weight_name, weight)
    if hidden.shape[1] != weight.shape[1]:
        raise DataError(
            f"token_stats {weight_name}",
            f"its width is {weight.shape[1]}, that of {hidden_name} {hidden.shape[1]}: they are "
            f"{_shape(weight)} and {_shape(hidden)}.",
            "Pass hidden states [T, D] and the head's rows [V, D] of the same model.",
        )
    if hidden.dtype != weight.dtype and not options.fp32_logits:
        raise DataError(
            f"token_stats {weight_name}",
            f"it is {weight.dtype} and {hidden_name} is {hidden.dtype}.",
            "Convert one of them, or set HeadOptions(fp32_logits=True).",
        )


def _check_matrix(name: str, tensor: Tensor) -> None:
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise DataError(
            f"token_stats {name}",
            f"it is {tensor.dtype} of shape {_shape(tensor)}; a floating-point matrix is needed.",
            "Flatten batch and sequence into one axis of tokens, and leave out positions without "
            "a target.",
        )


def _check_common(
    num_columns: int, num_tokens: int, device: torch.device, target: Tensor, request: Request
) -> None:
    if target.dtype != torch.int64 or target.shape != (num_tokens,) or target.device != device:
        raise DataError(
            "token_stats target",
            f"it is {target.dtype} of shape {_shape(target)} on {target.device}; int64 of shape "
            f"[{num_tokens}] on {device} is needed, one global token id for each row.",
            "Convert it with .long(), and select the same rows as of the hidden states or logits.",
        )
    if not (math.isfinite(request.temperature) and request.temperature > 0):
        raise DataError(
            "token_stats temperature",
            f"it is {request.temperature}; it divides the logits and must be positive.",
            "Pass the temperature that rollouts were sampled at, or 1.0.",
        )
    if request.options.tokens_per_chunk < 1:
        raise DataError(
            "token_stats options.tokens_per_chunk",
            f"it is {request.options.tokens_per_chunk}; a chunk has at least one token.",
            "Leave it out for the default.",
        )
    vocab_size = _checked_vocab_size(num_columns, request)
    if request.options.check:
        _check_target(target, vocab_size)


def _checked_vocab_size(num_columns: int, request: Request) -> int:
    """Real vocabulary over all ranks."""
    num_ranks = 1 if request.tp_group is None else request.tp_group.size()
    if request.vocab_size is None:
        return num_columns * num_ranks
    is_whole = num_ranks > 1 and num_columns >= request.vocab_size
    if is_whole or num_columns * num_ranks < request.vocab_size:
        fault = "that alone is the whole vocabulary" if is_whole else "together that is too few"
        raise DataError(
            "token_stats shard",
            f"this rank holds {num_columns} vocabulary columns, one of {num_ranks} rank(s), of a "
            f"vocabulary of {request.vocab_size}: {fault}.",
            "Pass ceil(vocab_size / ranks) columns or a few more as padding, the same number on "
            "every rank, or the right tp_group.",
        )
    return request.vocab_size


def _check_target(target_T: Tensor, vocab_size: int) -> None:
    is_bad_T = (target_T < 0) | (target_T >= vocab_size)
    if not bool(is_bad_T.any()):
        return
    first = int(is_bad_T.nonzero()[0])
    raise DataError(
        f"token_stats target[{first}]",
        f"token id {int(target_T[first])} is outside the vocabulary of {vocab_size} "
        f"({int(is_bad_T.sum())} of {len(target_T)} targets are; padding columns do not count).",
        "Leave out positions without a target (such as -100) before the call, and check that the "
        "tokenizer belongs to the model.",
    )


def _check_finite(name: str, hidden_TD: Tensor) -> None:
    is_finite_T = hidden_TD.isfinite().all(dim=1)
    if bool(is_finite_T.all()):
        return
    first = int((~is_finite_T).nonzero()[0])
    column = int((~hidden_TD[first].isfinite()).nonzero()[0])
    raise DataError(
        f"token_stats {name}[{first}, {column}]",
        f"it is {float(hidden_TD[first, column])}; {int((~is_finite_T).sum())} of "
        f"{len(hidden_TD)} tokens have values that are not finite.",
        "Look at the model's weights and at the last update's gradient norm; set "
        "HeadOptions(check=False) to let such values through.",
    )


def _check_extras(request: Request, *, has_reference: bool) -> None:
    if Stat.KL_REF in request.extras and not has_reference:
        raise DataError(
            "token_stats extras",
            f"'{Stat.KL_REF}' was asked for, and there is no reference to compare with.",
            "Pass the reference's hidden states and head, or its logits.",
        )


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(str(size) for size in tensor.shape)}]"
