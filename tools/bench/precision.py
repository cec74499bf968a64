"""How far the token statistics, and other ways to compute them, are from float64.

    python tools/bench/precision.py

The same logits go to every implementation of `token_stats.py` that takes logits, in float32 and in
bfloat16; what is exact is autograd in float64 on those very logits. Prints and writes, per kind of
logits, the largest relative error of log-probs, of entropies (absolute below one nat) and of the
gradient of both (its error's sum over a row, as a share of the row's sum). Not here: time, memory.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from megatron_reason import platform  # noqa: E402
from megatron_reason.ops.token_stats import token_stats_from_logits  # noqa: E402
from tools.bench.token_stats import joined_ranks  # noqa: E402
from tools.bench.token_stats_peers import PEERS, Pair  # noqa: E402

TARGET = Path(__file__).parent / "results" / "precision.md"
TOKENS, VOCAB = 256, 49152
SURE = 1e-6
_HEADER = (
    "| logits | type | implementation | log-prob | entropy | gradient |\n|---|---|---|---|---|---|"
)


def main() -> None:
    """Measure, print and store."""
    with joined_ranks(), platform.cpu():
        from megatron.core import parallel_state

        parallel_state.initialize_model_parallel(1)
        lines = list(measured())
    head = (
        f"Largest errors against float64, T = {TOKENS}, V = {VOCAB}, one rank, "
        f"{platform.device().type}.\n\n{_HEADER}"
    )
    text = "\n".join([head, *lines]) + "\n"
    TARGET.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def measured() -> Iterator[str]:
    """A line for each kind of logits, type and implementation."""
    target_T = torch.arange(TOKENS) * (VOCAB // TOKENS)
    own: dict[str, Callable[[Tensor, Tensor], Pair]] = {"own": own_stats}
    peers = {name: lambda z, t, peer=peer: peer(z, t, None) for name, peer in PEERS.items()}
    for kind, logits_TV in kinds(target_T).items():
        for dtype in (torch.float32, torch.bfloat16):
            given_TV = logits_TV.to(dtype)
            exact = answers(oracle, given_TV.double(), target_T)
            for name, stats in (own | peers).items():
                found = answers(stats, given_TV, target_T)
                shown = " | ".join(f"{error:.1e}" for error in errors(found, exact))
                yield f"| {kind} | {str(dtype)[6:]} | {name} | {shown} |"


def kinds(target_T: Tensor) -> dict[str, Tensor]:
    """Logits [T, V] in float64, from flat to all but certain of the target."""
    noise_TV = torch.randn(
        TOKENS, VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    own_T = target_T[:, None]
    rest_T = torch.logsumexp(noise_TV.scatter(1, own_T, -torch.inf), 1, keepdim=True)
    sure_T = rest_T + torch.log(torch.tensor((1 - SURE) / SURE, dtype=torch.float64))
    return {
        "flat (deviation 0.1)": 0.1 * noise_TV,
        "usual (deviation 3)": 3 * noise_TV,
        f"target at 1 - {SURE:.0e}": noise_TV.scatter(1, own_T, sure_T),
    }


def own_stats(logits: Tensor, target: Tensor) -> Pair:
    """This project's."""
    stats = token_stats_from_logits(logits, target)
    return stats.logprob_T, stats.entropy_T


def oracle(logits: Tensor, target: Tensor) -> Pair:
    """Plain autograd."""
    stats = token_stats_from_logits(logits, target, backend="reference")
    return stats.logprob_T, stats.entropy_T


def answers(
    stats: Callable[[Tensor, Tensor], Pair], logits: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs [T], entropies [T] and gradient [T, V], in float64."""
    leaf = logits.clone().requires_grad_()
    # Some overwrite what they are given.
    logprob, entropy = stats(leaf.clone(), target)
    (grad,) = torch.autograd.grad((logprob - 0.1 * entropy).sum(), leaf)
    return logprob.detach().double(), entropy.detach().double(), grad.double()


def errors(
    found: tuple[Tensor, Tensor, Tensor], exact: tuple[Tensor, Tensor, Tensor]
) -> tuple[float, float, float]:
    """Largest error of each, as the module says."""
    logprob_T, entropy_T, grad_TV = (a - b for a, b in zip(found, exact, strict=True))
    return (
        float((logprob_T / exact[0]).abs().max()),
        float((entropy_T.abs() / exact[1].clamp(min=1)).max()),
        float((grad_TV.abs().sum(1) / exact[2].abs().sum(1)).max()),
    )


if __name__ == "__main__":
    main()
