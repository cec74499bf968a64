"""The one reader of Megatron's parallel state; makes the `Topology` everyone else is handed."""

from dataclasses import replace
from typing import TypeVar, cast

import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch.distributed import ProcessGroup

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.schema.topology import Topology

T = TypeVar("T")


def init_topology(
    parallel: ParallelConfig, *, seed: int = 1234, token_multiple: int = 1
) -> Topology:
    """Build the process groups of `parallel` over the default process group.

    Args:
        parallel: requested layout; data parallelism takes the remaining ranks.
        seed: seed of Megatron's random-number trackers.
        token_multiple: what the tokens on each rank shall be a multiple of.

    Raises:
        TopologyError: the world size is not a multiple of what the layout needs.
    """
    parallel.data_parallel_size(dist.get_world_size())
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        expert_model_parallel_size=parallel.expert_model_parallel_size,
        expert_tensor_parallel_size=parallel.expert_tensor_parallel_size,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return replace(_read_topology(), token_multiple=token_multiple)


def from_first_rank(value: T | None) -> T:
    """`value` of rank 0, on every rank; picklable."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return cast(T, box[0])


def _read_topology() -> Topology:
    tp_size = parallel_state.get_tensor_model_parallel_world_size()
    pp_size = parallel_state.get_pipeline_model_parallel_world_size()
    dp_size = parallel_state.get_data_parallel_world_size()
    cp_size = parallel_state.get_context_parallel_world_size()
    # Megatron's annotation of a group is wider than what it returns.
    tp_group = cast(ProcessGroup, parallel_state.get_tensor_model_parallel_group())
    pp_group = cast(ProcessGroup, parallel_state.get_pipeline_model_parallel_group())
    dp_group = cast(ProcessGroup, parallel_state.get_data_parallel_group())
    cp_group = cast(ProcessGroup, parallel_state.get_context_parallel_group())
    return Topology(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=tp_size,
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=pp_size,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=dp_size,
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=cp_size,
        ep_rank=parallel_state.get_expert_model_parallel_rank(),
        ep_size=parallel_state.get_expert_model_parallel_world_size(),
        expert_tp_rank=parallel_state.get_expert_tensor_parallel_rank() or 0,
        expert_tp_size=parallel_state.get_expert_tensor_parallel_world_size() or 1,
        tp_group=tp_group if tp_size > 1 else None,
        pp_group=pp_group if pp_size > 1 else None,
        dp_group=dp_group if dp_size > 1 else None,
        cp_group=cp_group if cp_size > 1 else None,
    )
