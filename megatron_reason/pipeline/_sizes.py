"""Sizes of well-known models, for where no config.json is at hand. Not here: estimates."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_reason.errors import ConfigError
from megatron_reason.files import read_json
from megatron_reason.registry import suggest


@dataclass(frozen=True)
class Sizes:
    """What of a decoder takes memory and time."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    """Whether the LM head is the embedding."""
    qkv_bias: bool = False

    def splits(self, shards: int) -> bool:
        """Whether heads and MLP can be shared among so many; few key heads may be copied."""
        keys = self.kv_heads % shards == 0 or shards % self.kv_heads == 0
        return keys and not (self.heads % shards or self.ffn % shards)

    @property
    def layer_matrices(self) -> int:
        """Weights of one layer's matrices."""
        qkv = self.hidden * (self.heads + 2 * self.kv_heads) * self.head_dim
        return qkv + self.heads * self.head_dim * self.hidden + 3 * self.hidden * self.ffn

    @property
    def layer_small(self) -> int:
        """Weights of one layer's norms and biases."""
        bias = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        return 2 * self.hidden + bias

    @property
    def embedding(self) -> int:
        """Weights of the embedding."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        ends = self.embedding * (1 if self.tied else 2) + self.hidden
        return self.layers * (self.layer_matrices + self.layer_small) + ends


def _qwen2(layers: int, hidden: int, ffn: int, *heads: int, vocab: int, tied: bool) -> Sizes:
    return Sizes(layers, hidden, ffn, heads[0], heads[1], 128, vocab, tied, qkv_bias=True)


_QWEN_1_5B = _qwen2(28, 1536, 8960, 12, 2, vocab=151936, tied=True)
_QWEN_7B = _qwen2(28, 3584, 18944, 28, 4, vocab=152064, tied=False)
_LLAMA_8B = Sizes(32, 4096, 14336, 32, 8, 128, 128256, tied=False)

KNOWN: dict[str, Sizes] = {
    "Qwen2.5-1.5B": _QWEN_1_5B,
    "Qwen2.5-Math-1.5B": _QWEN_1_5B,
    "Qwen2.5-3B": _qwen2(36, 2048, 11008, 16, 2, vocab=151936, tied=True),
    "Qwen2.5-7B": _QWEN_7B,
    "Qwen2.5-Math-7B": _QWEN_7B,
    "Qwen2.5-14B": _qwen2(48, 5120, 13824, 40, 8, vocab=152064, tied=False),
    "Qwen2.5-32B": _qwen2(64, 5120, 27648, 40, 8, vocab=152064, tied=False),
    "Qwen2.5-72B": _qwen2(80, 8192, 29568, 64, 8, vocab=152064, tied=False),
    "Qwen3-1.7B": Sizes(28, 2048, 6144, 16, 8, 128, 151936, tied=True),
    "Llama-3.2-1B": Sizes(16, 2048, 8192, 32, 8, 64, 128256, tied=True),
    "Llama-3.2-3B": Sizes(28, 3072, 8192, 24, 8, 128, 128256, tied=True),
    "Llama-3.1-8B": _LLAMA_8B,
    "Llama-3-8B": _LLAMA_8B,
    "Llama-3.1-70B": Sizes(80, 8192, 28672, 64, 8, 128, 128256, tied=False),
    "Llama-3-70B": Sizes(80, 8192, 28672, 64, 8, 128, 128256, tied=False),
}
"""By the last part of a hub id; variants such as -Base and -Instruct have the same sizes."""


def sizes_of(path: str, model_cache: Path) -> Sizes:
    """Sizes of the model that `model.path` names: from its config.json, or by its name.

    Args:
        path: folder, name of a built-in model, or hub id.
        model_cache: where models are unpacked.

    Raises:
        ConfigError: it is neither here nor known.
    """
    for folder in (Path(path), model_cache / path):
        if (folder / "config.json").is_file():
            return _from_config(read_json(folder / "config.json"))
    name = path.rstrip("/").rpartition("/")[2]
    for ending in ("", "-Base", "-Instruct"):
        if (found := KNOWN.get(name.removesuffix(ending))) is not None:
            return found
    raise ConfigError(
        "model.path",
        f"the sizes of '{path}' are not known, and its config.json is not here.",
        f"Fetch it first, and give its folder. {suggest(name, [*KNOWN])}",
    )


def _from_config(config: dict[str, Any]) -> Sizes:
    heads = config["num_attention_heads"]
    return Sizes(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        ffn=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        qkv_bias=config.get("model_type") == "qwen2" or config.get("attention_bias", False),
    )
