"""Other ways to get log-probability and entropy from vocabulary-parallel logits, to compare with.

Each peer takes logits [T, V] of this rank's columns, targets [T], and the group (None if this rank
holds all columns), and returns both statistics [T], differentiable. Those called "style" are
written here after the published maths of the projects they name, in the precision and with the
saved tensors that those projects have. Megatron's cross-entropy and Liger's function are imported.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Pair = tuple[Tensor, Tensor]
Peer = Callable[[Tensor, Tensor, Any], Pair]
HeadPeer = Callable[[Tensor, Tensor, Tensor], Pair]
LogprobPeer = Callable[[Tensor, Tensor, Tensor], Tensor]


def log_softmax(logits: Tensor, target: Tensor, group: Any) -> Pair:  # noqa: ANN401, ARG001
    """Full float32 log-softmax and -sum p log p, by autograd; one rank only."""
    logprob = torch.log_softmax(logits.float(), dim=-1)
    return logprob.gather(1, target[:, None])[:, 0], -(logprob.exp() * logprob).sum(dim=-1)


def megatron_with_entropy(logits: Tensor, target: Tensor, group: Any) -> Pair:  # noqa: ANN401, ARG001
    """Megatron's cross-entropy (on a copy: it overwrites float32 logits) and autograd's entropy."""
    logprob = torch.log_softmax(logits.float(), dim=-1)
    return _megatron(logits, target), -(logprob.exp() * logprob).sum(dim=-1)


def verl_style(logits: Tensor, target: Tensor, group: Any) -> Pair:  # noqa: ANN401
    """An entropy in the logits' own precision, and Megatron's cross-entropy on a copy."""
    return _megatron(logits, target), _VerlStyleEntropy.apply(logits, group)


def slime_style(logits: Tensor, target: Tensor, group: Any) -> Pair:  # noqa: ANN401
    """Both from one float32 softmax, which is saved together with the shifted logits."""
    return _SlimeStyle.apply(logits, target, group)


def nemo_style(logits: Tensor, target: Tensor, group: Any) -> Pair:  # noqa: ANN401
    """A log-prob that saves the float32 softmax; an entropy by chunks, recomputed backwards."""
    return _NemoStyleLogprob.apply(logits, target, group), _NemoStyleEntropy.apply(logits, group)


def verl_fused_style(hidden: Tensor, weight: Tensor, target: Tensor) -> Pair:
    """Head and both statistics by chunks of tokens, each computed again backwards."""
    return _VerlFusedStyle.apply(hidden, weight, target)


def liger() -> HeadPeer | None:
    """Liger's fused linear scaled cross-entropy with entropy, if there are package and GPU."""
    if importlib.util.find_spec("liger_kernel") is None or not torch.cuda.is_available():
        return None
    found = importlib.import_module("liger_kernel.ops.fused_linear_scaled_cross_entropy")
    function = found.LigerFusedLinearScaledCrossEntropyFunction

    def stats(hidden: Tensor, weight: Tensor, target: Tensor) -> Pair:
        nll, entropy = function.apply(
            hidden, weight, target, temperature=1.0, ignore_index=-100, return_entropy=True
        )
        return -nll, entropy

    return stats


def apple_cce() -> LogprobPeer | None:
    """Apple's fused linear cross-entropy, if the package can be imported; compiled on a CPU."""
    if importlib.util.find_spec("cut_cross_entropy") is None:
        return None
    function = importlib.import_module("cut_cross_entropy").linear_cross_entropy

    def logprob(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        impl = "cce" if hidden.is_cuda else "torch_compile"
        return -function(hidden, weight, target, reduction="none", filter_eps=None, impl=impl)

    return logprob


def liger_cross_entropy() -> LogprobPeer | None:
    """Liger's fused linear cross-entropy, if there are the package and a GPU."""
    if importlib.util.find_spec("liger_kernel") is None or not torch.cuda.is_available():
        return None
    found = importlib.import_module("liger_kernel.ops.fused_linear_cross_entropy")
    function = found.LigerFusedLinearCrossEntropyFunction

    def logprob(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        loss, *_ = function.apply(hidden, weight, target, None, None, -100, 0.0, 0.0, "none")
        return -loss

    return logprob


def logprob_peers() -> dict[str, LogprobPeer | None]:
    """Peers that give no entropy, on one rank; None where a package or its device is absent."""
    return {"Apple CCE": apple_cce(), "Liger FLCE": liger_cross_entropy()}


def head_peers() -> dict[str, HeadPeer | None]:
    """Peers that multiply by the head themselves, on one rank; None where a package is absent."""
    return {"verl fused style": verl_fused_style, "Liger": liger()}


PEERS: dict[str, Peer] = {
    "full log-softmax": log_softmax,
    "Megatron CE + entropy": megatron_with_entropy,
    "verl style": verl_style,
    "slime style": slime_style,
    "NeMo style": nemo_style,
}
WHOLE_VOCABULARY_ONLY = ("full log-softmax", "Megatron CE + entropy")


def _megatron(logits: Tensor, target: Tensor) -> Tensor:
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    return -vocab_parallel_cross_entropy(logits.clone()[:, None], target[:, None])[:, 0]


def _reduced(value: Tensor, group: Any, *, largest: bool = False) -> Tensor:  # noqa: ANN401
    if group is not None:
        dist.all_reduce(value, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=group)
    return value


def _local(target: Tensor, logits: Tensor, group: Any) -> Pair:  # noqa: ANN401
    """Column of each target here (0 if elsewhere), and whether it is here."""
    column = target - (0 if group is None else group.rank() * logits.shape[1])
    is_here = (column >= 0) & (column < logits.shape[1])
    return column * is_here, is_here


def _shifted(logits: Tensor, group: Any) -> Pair:  # noqa: ANN401
    top = _reduced(logits.amax(dim=-1, keepdim=True), group, largest=True)
    return logits - top, top


class _SlimeStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, group: Any):  # noqa: ANN205, ANN401
        shifted, _ = _shifted(logits.float(), group)
        softmax = shifted.exp()
        total = _reduced(softmax.sum(dim=-1, keepdim=True), group)
        softmax.div_(total)
        column, is_here = _local(target, logits, group)
        picked = _reduced(shifted.gather(1, column[:, None])[:, 0] * is_here, group)
        log_total = total.log()[:, 0]
        moment = _reduced((softmax * shifted).sum(dim=-1), group)
        entropy = log_total - moment
        ctx.save_for_backward(softmax, shifted, column, is_here, log_total, entropy)
        ctx.dtype = logits.dtype
        return picked - log_total, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):  # noqa: ANN205, ANN401
        softmax, shifted, column, is_here, log_total, entropy = ctx.saved_tensors
        grad = softmax * -grads[0][:, None]
        grad.scatter_add_(1, column[:, None], (grads[0] * is_here)[:, None])
        inner = shifted + (entropy - log_total)[:, None]
        grad.sub_(inner.mul_(softmax).mul_(grads[1][:, None]))
        return grad.to(ctx.dtype), None, None


class _VerlStyleEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, group: Any):  # noqa: ANN205, ANN401
        shifted, top = _shifted(logits, group)
        softmax = shifted.exp_()
        total = _reduced(softmax.sum(dim=-1, keepdim=True), group)
        softmax.div_(total)
        mean = _reduced((softmax * logits).sum(dim=-1, keepdim=True), group)
        ctx.save_for_backward(logits, softmax, mean)
        return (top + total.log() - mean)[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):  # noqa: ANN205, ANN401
        logits, softmax, mean = ctx.saved_tensors
        inner = logits - mean
        return inner.mul_(softmax).mul_(-grads[0][:, None]), None


class _VerlFusedStyle(torch.autograd.Function):
    CHUNK = 512

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor):  # noqa: ANN205, ANN401
        ctx.save_for_backward(hidden, weight, target)
        logprobs: list[Tensor] = []
        entropies: list[Tensor] = []
        for part, wanted in zip(hidden.split(_VerlFusedStyle.CHUNK),
                                target.split(_VerlFusedStyle.CHUNK), strict=True):  # fmt: skip
            logits = (part @ weight.T).float()
            prob, logprob = logits.softmax(dim=-1), logits.log_softmax(dim=-1)
            logprobs.append(logprob.gather(1, wanted[:, None])[:, 0])
            entropies.append(logits.logsumexp(dim=-1) - (prob * logits).sum(dim=-1))
        return torch.cat(logprobs), torch.cat(entropies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):  # noqa: ANN205, ANN401
        hidden, weight, target = ctx.saved_tensors
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for begin in range(0, len(hidden), _VerlFusedStyle.CHUNK):
            rows = slice(begin, begin + _VerlFusedStyle.CHUNK)
            logits = (hidden[rows] @ weight.T).float()
            prob, logprob = logits.softmax(dim=-1), logits.log_softmax(dim=-1)
            entropy = logits.logsumexp(dim=-1, keepdim=True)
            entropy = entropy - (prob * logits).sum(dim=-1, keepdim=True)
            one_hot = torch.zeros_like(logits).scatter_(1, target[rows, None], 1)
            grad = grads[0][rows, None] * (one_hot - prob)
            grad += prob * (logprob + entropy) * -grads[1][rows, None]
            grad = grad.to(hidden.dtype)
            grad_hidden[rows] = grad @ weight
            grad_weight += grad.T @ hidden[rows]
        return grad_hidden, grad_weight, None


class _NemoStyleLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, group: Any):  # noqa: ANN205, ANN401
        shifted, _ = _shifted(logits.float(), group)
        total = _reduced(shifted.exp().sum(dim=-1, keepdim=True), group)
        logprob = shifted - total.log()
        column, is_here = _local(target, logits, group)
        ctx.save_for_backward(logprob.exp(), column, is_here)
        ctx.dtype = logits.dtype
        return _reduced(logprob.gather(1, column[:, None])[:, 0] * is_here, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):  # noqa: ANN205, ANN401
        softmax, column, is_here = ctx.saved_tensors
        grad = -softmax * grads[0][:, None]
        grad.scatter_add_(1, column[:, None], (grads[0] * is_here)[:, None])
        return grad.to(ctx.dtype), None, None


class _NemoStyleEntropy(torch.autograd.Function):
    CHUNK = 512

    @staticmethod
    def forward(ctx: Any, logits: Tensor, group: Any):  # noqa: ANN205, ANN401
        parts = []
        for chunk in logits.split(_NemoStyleEntropy.CHUNK):
            logprob = _NemoStyleEntropy.logprobs(chunk, group)
            parts.append(-_reduced((logprob.exp() * logprob).sum(dim=-1), group))
        entropy = torch.cat(parts)
        ctx.save_for_backward(logits, entropy)
        ctx.group = group
        return entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):  # noqa: ANN205, ANN401
        logits, entropy = ctx.saved_tensors
        out = torch.empty_like(logits, dtype=torch.float32)
        for begin in range(0, len(logits), _NemoStyleEntropy.CHUNK):
            rows = slice(begin, begin + _NemoStyleEntropy.CHUNK)
            logprob = _NemoStyleEntropy.logprobs(logits[rows], ctx.group)
            out[rows] = -grads[0][rows, None] * logprob.exp() * (logprob + entropy[rows, None])
        return out.to(logits.dtype), None

    @staticmethod
    def logprobs(chunk: Tensor, group: Any) -> Tensor:  # noqa: ANN401
        """Float32 log-softmax over all ranks' columns."""
        shifted, _ = _shifted(chunk.float(), group)
        return shifted - _reduced(shifted.exp().sum(dim=-1, keepdim=True), group).log()
