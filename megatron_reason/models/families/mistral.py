"""Mistral without a sliding window (7B from v0.2 on, Nemo, Small): the shape of Llama."""

from megatron_reason.models.architecture import (
    ARCHITECTURES,
    DECODER_FIELDS,
    Architecture,
    Shape,
    decoder_params,
)

ARCHITECTURE = Architecture(
    hf_class="MistralForCausalLM",
    shape=lambda hf: Shape(tied=hf.tie_word_embeddings),
    params=decoder_params,
    config_fields=DECODER_FIELDS,
    must_be={"sliding_window": (None,)},
)
ARCHITECTURES.register(ARCHITECTURE.hf_class)(ARCHITECTURE)
