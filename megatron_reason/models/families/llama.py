"""Llama 2 and 3, SmolLM2, DeepSeek-R1-Distill-Llama, and every checkpoint of their class."""

from megatron_reason.models.architecture import (
    ARCHITECTURES,
    DECODER_FIELDS,
    Architecture,
    Shape,
    decoder_params,
)

ARCHITECTURE = Architecture(
    hf_class="LlamaForCausalLM",
    shape=lambda hf: Shape(tied=hf.tie_word_embeddings),
    params=decoder_params,
    config_fields=DECODER_FIELDS,
)
ARCHITECTURES.register(ARCHITECTURE.hf_class)(ARCHITECTURE)
