"""Seeds of single requests: a draw depends on what is asked, not on what else is in the batch.

Not here: random number generators, which are the engines' own.
"""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

from megatron_reason.config.sampling import SamplingConfig

_BITS = 31


def request_seeds(
    prompts: Sequence[Sequence[int]], sampling: SamplingConfig, first_sample: int = 0
) -> list[list[int]]:
    """One seed for each sample of each prompt.

    A seed follows from `sampling.seed`, the prompt's ids, how often the same prompt came before,
    and the sample's index. So an evaluation that is resumed with half of its problems draws what
    an uninterrupted one would have drawn, and a prompt given twice is answered twice.

    Args:
        prompts: token ids of each prompt.
        sampling: how to draw.
        first_sample: index of the first sample that gets one; those before it are drawn already.

    Returns:
        [prompts][samples_per_prompt - first_sample] integers in 0..2**31 - 1.
    """
    seen: Counter[tuple[int, ...]] = Counter()
    seeds: list[list[int]] = []
    for prompt in prompts:
        ids = tuple(prompt)
        first = seen[ids] * sampling.samples_per_prompt
        seen[ids] += 1
        samples = range(first + first_sample, first + sampling.samples_per_prompt)
        seeds.append([_seed(sampling.seed, ids, sample) for sample in samples])
    return seeds


def _seed(seed: int, ids: tuple[int, ...], sample: int) -> int:
    digest = sha256(repr((seed, ids, sample)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - _BITS)
