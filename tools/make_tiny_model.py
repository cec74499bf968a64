"""Write a tiny random Hugging Face checkpoint with a tokenizer; needs no hub.

    python -m tools.make_tiny_model Qwen2ForCausalLM /some/folder --tied

Every class that the model registry finds can be made. Weights, biases and norms are all perturbed,
so that a mixed-up tensor cannot go unnoticed. The tokenizer maps each byte of UTF-8 to one id.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from megatron_reason.models.architecture import ARCHITECTURES

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB_SIZE = 256 + len(SPECIAL)
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "sliding_window": None,
    "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True,
}  # fmt: skip
"""Fields of the configuration; a class takes those it has."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_model(
    hf_class: str, folder: Path, *, dtype: str = "float32", max_shard_size: str = "1GB",
    seed: int = 11, **config: Any,  # noqa: ANN401 - fields of any type
) -> Path:  # fmt: skip
    """Write a random checkpoint of the class called `hf_class` to `folder`.

    Args:
        hf_class: class of transformers ("Qwen2ForCausalLM").
        folder: where it goes.
        dtype: name of the data type on disk.
        max_shard_size: size above which weights are split over several files with an index.
        seed: seed of the weights.
        config: fields of its configuration that differ from `SIZES`.

    Returns:
        `folder`.
    """
    torch.manual_seed(seed)
    model_class = getattr(transformers, hf_class)
    known = model_class.config_class()
    sizes = {field: size for field, size in SIZES.items() if hasattr(known, field)}
    sizes |= {"vocab_size": VOCAB_SIZE, "eos_token_id": 258, "bos_token_id": None, **config}
    model = model_class(model_class.config_class(**sizes))
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("hf_class", choices=ARCHITECTURES.names())
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tied", action="store_true", help="LM head is the input embedding")
    parser.add_argument("--layers", type=int, default=SIZES["num_hidden_layers"])
    parser.add_argument("--dtype", default="bfloat16")
    chosen = parser.parse_args()
    make_tiny_model(
        chosen.hf_class, chosen.folder, dtype=chosen.dtype, tie_word_embeddings=chosen.tied,
        num_hidden_layers=chosen.layers,
    )  # fmt: skip


if __name__ == "__main__":
    main()
