"""Tiny random checkpoints of every family, and what Hugging Face says about them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_reason.models.architecture import ARCHITECTURES
from tools.make_tiny_model import VOCAB_SIZE, make_tiny_model

VOCAB = VOCAB_SIZE
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{hf_class}-{'tied' if tied else 'untied'}": (hf_class, {"tie_word_embeddings": tied})
    for hf_class in ARCHITECTURES.names()
    for tied in (True, False)
}
"""Whatever the registry finds, so that a new family is tested before its author writes a test."""
FAMILIES["llama3-rope"] = ("LlamaForCausalLM", {"rope_parameters": LLAMA3})
FAMILIES["linear-rope"] = ("LlamaForCausalLM", {"rope_parameters": LINEAR})
FAMILIES["qwen3moe-unnormalised"] = ("Qwen3MoeForCausalLM", {"norm_topk_prob": False})
FAMILIES["qwen3-wide-heads"] = ("Qwen3ForCausalLM", {"head_dim": 16, "tie_word_embeddings": True})


def make(family: str, folder: Path, *, dtype: str = "float32", max_shard_size: str = "1GB") -> Path:
    """Save a random checkpoint of `family` with a file that must come back byte for byte."""
    hf_class, config = FAMILIES[family]
    make_tiny_model(hf_class, folder, dtype=dtype, max_shard_size=max_shard_size, **config)
    (folder / "notes.json").write_text('{"any":  "bytes\\u00e9"}\n', encoding="utf-8")
    return folder


def logprobs(folder: Path, ids: tuple[int, ...]) -> Tensor:
    """Log-probability of each id after the first, by transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits, dim=1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
