"""Fixed token ids by which two programs that hold the same model can be compared.

Not here: the comparison (`rollout/weight_sync.py`, `pipeline/opinions.py`).
"""

import random
from pathlib import Path

from megatron_reason.files import read_json

_TEXTS = (
    "Tom has 3 apples and buys 4 more. How many apples does he have now? He has 3 + 4 = 7 apples.",
    "Let x be a number with 2x + 6 = 20. Then 2x = 14, so x = 7. The answer is \\boxed{7}.",
)
_LONGEST = 96
_NUM_RANDOM = 48
_SEED = 0


def text_sequences(hf_folder: Path) -> list[tuple[int, ...]]:
    """Two short texts in the model's own tokens; none without a tokenizer."""
    if not (hf_folder / "tokenizer_config.json").is_file():
        return []
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(hf_folder)
    texts = [tokenizer.encode(text, add_special_tokens=False) for text in _TEXTS]
    return [tuple(ids[:_LONGEST]) for ids in texts]


def random_sequence(hf_folder: Path) -> tuple[int, ...]:
    """Tokens drawn at random, the same for the same vocabulary whenever asked."""
    size: int = read_json(hf_folder / "config.json")["vocab_size"]
    generator = random.Random(_SEED)
    return tuple(generator.randrange(size) for _ in range(_NUM_RANDOM))


def probe_sequence(hf_folder: Path) -> tuple[int, ...]:
    """One of them: text, because a model is sure of little else, and rounding shows less there."""
    return next(iter(text_sequences(hf_folder)), random_sequence(hf_folder))
