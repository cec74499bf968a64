"""Arithmetic that an update needs, and the share of a GPU's peak at which it was done.

Counted is what forward and backward pass of the model's equations take: no activation that is
computed again, no padding, no masked half of attention, and the LM head only where there is
something to learn. A rate by this count is below what a profiler shows, and layouts can be compared
by it. Not here: rates that are assumed before a run (`pipeline/estimate.py`).
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.transformer import TransformerConfig

from megatron_reason import platform
from megatron_reason.config.gpus import peak_flops
from megatron_reason.schema.batch import TokenizedSample


def flops_of(
    config: TransformerConfig, vocab_size: int, samples: Sequence[TokenizedSample]
) -> float:
    """Operations of one forward and one backward pass over `samples`, on all ranks together.

    Args:
        config: of the model, or of any of its stages.
        vocab_size: columns of the LM head without padding.
        samples: a product and its sum count as two operations; the backward pass takes twice the
            forward pass's.
    """
    lengths = [sample.num_positions for sample in samples]
    targets = sum(sample.num_targets for sample in samples)
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    assert config.kv_channels is not None, "Megatron fills it in"
    attention = 2 * config.num_layers * config.num_attention_heads * config.kv_channels
    layers = config.num_layers * _weights_of_layer(config)
    head = config.hidden_size * vocab_size
    return 6.0 * (layers * sum(lengths) + head * targets + attention * pairs)


def rates(flops: float, seconds: float, config: TransformerConfig) -> dict[str, float]:
    """Metrics of the speed of an update: per rank, and as a share of the peak where it is known.

    The peak is that of products of bfloat16: float32 and FP8 have others.
    """
    rate = flops / seconds / dist.get_world_size()
    found = {"perf/tflops_per_rank": rate / 1e12}
    peak = peak_flops(platform.name())
    if peak is not None and config.params_dtype == torch.bfloat16 and config.fp8 is None:
        found["perf/mfu"] = rate / peak
    return found


def _weights_of_layer(config: TransformerConfig) -> int:
    """Weights of a layer's matrices that one token is multiplied by."""
    assert config.kv_channels is not None, "Megatron fills it in"
    assert config.num_query_groups is not None, "Megatron fills it in"
    heads = 2 * config.num_attention_heads + 2 * config.num_query_groups
    attention = config.hidden_size * heads * config.kv_channels
    assert config.ffn_hidden_size is not None, "the build gives it"
    if config.num_moe_experts is None:
        return attention + 3 * config.hidden_size * config.ffn_hidden_size
    assert config.moe_ffn_hidden_size is not None, "the build gives it"
    experts = 3 * config.moe_router_topk * config.moe_ffn_hidden_size
    return attention + config.hidden_size * (experts + config.num_moe_experts)
