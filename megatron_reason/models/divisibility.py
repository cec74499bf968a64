"""Which parallel layouts a model's sizes allow. Needs no process group and no Megatron."""

from collections.abc import Iterable

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import TopologyError
from megatron_reason.models.architecture import Architecture, Experts
from megatron_reason.models.layout import HFConfig, head_width


def check_topology(config: HFConfig, architecture: Architecture, parallel: ParallelConfig) -> None:
    """Refuse layouts that cannot be built, before any process starts.

    The vocabulary is padded, so it allows every layout. KV groups fewer than tensor-parallel ranks
    are cut through, and gathered for the computation, if the ranks are a multiple of the groups.

    Raises:
        TopologyError: heads, KV groups, the MLP, the experts or the layers cannot be split as
            asked, or sequence parallelism is asked for without tensor parallelism, or missing.
    """
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    experts = architecture.shape(config).experts
    mlp = None if experts else config.intermediate_size
    if not _tensor_fits(config, mlp, tp):
        fits = (n for n in range(1, config.num_attention_heads + 1) if _tensor_fits(config, mlp, n))
        and_mlp = f" and an MLP of {mlp}" if mlp else ""
        raise TopologyError(
            "parallel.tensor_model_parallel_size",
            f"{config.num_attention_heads} attention heads, {config.num_key_value_heads} KV groups"
            f"{and_mlp} cannot all be split over {tp} tensor-parallel ranks.",
            f"Use {_one_of(fits)}; to save more memory add pipeline stages.",
        )
    layers = config.num_hidden_layers
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
    _check_experts(experts, parallel)


def _check_experts(experts: Experts | None, parallel: ParallelConfig) -> None:
    ep = parallel.expert_model_parallel_size
    count = experts.count if experts else 1
    if count % ep:
        fits = (n for n in range(1, count + 1) if count % n == 0)
        what = f"{count} experts cannot be split evenly" if experts else "no experts can be split"
        raise TopologyError(
            "parallel.expert_model_parallel_size",
            f"{what} over {ep} ranks.",
            f"Use {_one_of(fits)}.",
        )
    etp = parallel.expert_tensor_parallel_size or parallel.tensor_model_parallel_size
    if experts and experts.width % etp:
        fits = (n for n in range(1, etp) if experts.width % n == 0)
        raise TopologyError(
            "parallel.expert_tensor_parallel_size",
            f"experts of width {experts.width} cannot be split over {etp} ranks.",
            f"Use {_one_of(fits)}.",
        )
    if experts and parallel.tensor_model_parallel_size > 1 and not parallel.sequence_parallel:
        raise TopologyError(
            "parallel.sequence_parallel",
            "experts under tensor parallelism need tokens that are sharded over the same ranks.",
            "Set parallel.sequence_parallel: true, or tensor_model_parallel_size: 1.",
        )


def _tensor_fits(config: HFConfig, mlp: int | None, tp: int) -> bool:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    rows = (heads + 2 * groups) * head_width(config)
    shared = groups % tp == 0 or tp % groups == 0
    return shared and not (heads % tp or (mlp or 0) % tp or rows % tp)


def _one_of(sizes: Iterable[int]) -> str:
    return " or ".join(map(str, sizes))
