"""Which parallel layouts a model's sizes allow. Needs no process group and no Megatron."""

from collections.abc import Iterable

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import TopologyError
from megatron_reason.models.architecture import HFConfig


def check_topology(config: HFConfig, parallel: ParallelConfig) -> None:
    """Refuse layouts that cannot be built, before any process starts.

    The vocabulary is padded, so it allows every layout.

    Raises:
        TopologyError: heads, KV groups, the MLP or the layers cannot be split as asked, or
            sequence parallelism is asked for without tensor parallelism.
    """
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    mlp, layers = config.intermediate_size, config.num_hidden_layers
    if heads % tp or groups % tp or mlp % tp:
        fits = (n for n in range(1, groups + 1) if not (heads % n or groups % n or mlp % n))
        raise TopologyError(
            "parallel.tensor_model_parallel_size",
            f"{heads} attention heads, {groups} KV groups and an MLP of {mlp} cannot all be split "
            f"over {tp} tensor-parallel ranks.",
            f"Use {_one_of(fits)}; to save more memory add pipeline stages.",
        )
    if layers % pp:
        fits = (n for n in range(1, layers + 1) if layers % n == 0)
        raise TopologyError(
            "parallel.pipeline_model_parallel_size",
            f"{layers} layers cannot be split evenly over {pp} stages.",
            f"Use {_one_of(fits)}.",
        )
    if parallel.sequence_parallel and tp == 1:
        raise TopologyError(
            "parallel.sequence_parallel",
            "tokens are sharded over the tensor-parallel ranks, and there is 1 of them.",
            "Set parallel.sequence_parallel: false, or tensor_model_parallel_size above 1.",
        )


def _one_of(sizes: Iterable[int]) -> str:
    return " or ".join(map(str, sizes))
