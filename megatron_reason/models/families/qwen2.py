"""Qwen2, Qwen2.5, Qwen2.5-Math, DeepSeek-R1-Distill-Qwen: Llama with biases on q, k and v."""

from megatron_reason.models.architecture import (
    ARCHITECTURES,
    DECODER_FIELDS,
    Architecture,
    Shape,
    decoder_params,
)

ARCHITECTURE = Architecture(
    hf_class="Qwen2ForCausalLM",
    shape=lambda hf: Shape(qkv_bias=True, tied=hf.tie_word_embeddings),
    params=decoder_params,
    config_fields=DECODER_FIELDS,
)
ARCHITECTURES.register(ARCHITECTURE.hf_class)(ARCHITECTURE)
