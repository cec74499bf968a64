"""Qwen3, dense: Llama with per-head norms on queries and keys."""

from megatron_reason.models.architecture import (
    ARCHITECTURES,
    DECODER_FIELDS,
    Architecture,
    Shape,
    decoder_params,
)

ARCHITECTURE = Architecture(
    hf_class="Qwen3ForCausalLM",
    shape=lambda hf: Shape(qk_norm=True, tied=hf.tie_word_embeddings),
    params=decoder_params,
    config_fields=DECODER_FIELDS,
)
ARCHITECTURES.register(ARCHITECTURE.hf_class)(ARCHITECTURE)
