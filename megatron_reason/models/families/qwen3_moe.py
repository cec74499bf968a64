"""Qwen3-MoE: Qwen3 with a mixture of experts in the place of every MLP."""

from megatron_reason.models.architecture import (
    ARCHITECTURES,
    DECODER_FIELDS,
    Architecture,
    Experts,
    Shape,
    decoder_params,
)
from megatron_reason.models.layout import HFConfig


def _shape(hf: HFConfig) -> Shape:
    return Shape(
        qk_norm=True,
        tied=hf.tie_word_embeddings,
        experts=Experts(
            count=hf.num_experts,
            per_token=hf.num_experts_per_tok,
            width=hf.moe_intermediate_size,
            renormalised=hf.norm_topk_prob,
        ),
    )


ARCHITECTURE = Architecture(
    hf_class="Qwen3MoeForCausalLM",
    shape=_shape,
    params=decoder_params,
    config_fields=DECODER_FIELDS
    | {"moe_intermediate_size", "norm_topk_prob", "num_experts_per_tok"}
    # The second is how transformers saves the first.
    | {"num_experts", "num_local_experts"}
    # Only of an auxiliary loss that no method here has.
    | {"output_router_logits", "router_aux_loss_coef"},
    must_be={"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
)
ARCHITECTURES.register(ARCHITECTURE.hf_class)(ARCHITECTURE)
