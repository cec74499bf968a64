"""Hugging Face safetensors -> the parameters of a parallel model, each rank its own slices.

Nothing is read but what this rank holds, and it goes straight from the mapped file into the
parameter. Every parameter of the stage is filled exactly once, and every tensor of the checkpoint
is used by some rank or ignored for a reason, or the import fails. Not here: which slices those are
(`layout.py`).
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_reason.errors import ConversionError
from megatron_reason.logs import get_logger
from megatron_reason.models.architecture import (
    EMBEDDING,
    HEAD,
    Shape,
    read_architecture,
    why_ignored,
)
from megatron_reason.models.checkpoint_files import Checkpoint, open_checkpoint
from megatron_reason.models.layout import Layout, Sharding, lay_out
from megatron_reason.schema.topology import Topology

_LOG = get_logger(__name__)
_BLOCK_BYTES = 1 << 24
_READERS = 2
"""Threads that fill parameters: while one waits for the disk, the other touches new memory."""


def import_hf(model: nn.Module, hf_folder: Path, topology: Topology) -> None:
    """Fill this rank's stage with the weights in `hf_folder`, cast to its parameters' type.

    Args:
        model: the stage `build_model` made.
        hf_folder: folder with config.json and safetensors.
        topology: this rank's place.

    Raises:
        ConversionError: a tensor that is missing, has another shape, or that nothing uses.
    """
    config, architecture = read_architecture(hf_folder)
    rules = architecture.rules(config)
    used: set[str] = set()
    with open_checkpoint(hf_folder) as source, ThreadPoolExecutor(_READERS) as pool:
        filled: list[Future[None]] = []
        for name, parameter in global_parameters(model):
            sharding = sharding_of(name, parameter, topology)
            layout = lay_out(name, sharding, rules, config, source.shape)
            filled.append(pool.submit(_fill, parameter.data, layout, source))
            used.update(layout.names)
        for done in filled:
            done.result()
        _check_all_used(source, used, architecture.shape(config), topology)


def global_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of a stage by name, with layers and experts numbered over the whole model."""
    layers: Any = model.get_submodule("decoder.layers")
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if name.startswith("decoder.layers."):
            layer = layers[int(parts[2])]
            parts[2] = str(layer.layer_number - 1)
            if "local_experts" in parts:
                place = parts.index("local_experts") + 1
                parts[place] = str(layer.mlp.local_expert_indices[int(parts[place])])
        yield ".".join(parts), parameter


def sharding_of(name: str, parameter: nn.Parameter, topology: Topology) -> Sharding:
    """How Megatron shards a parameter, from the marks it carries, and which shard this rank's is.

    Args:
        name: the parameter's name, which tells an expert's.
        parameter: this rank's shard.
        topology: this rank's place.
    """
    marked: Any = parameter
    is_parallel = getattr(parameter, "tensor_model_parallel", False)
    rank, size = topology.tp_rank, topology.tp_size
    if "local_experts" in name.split("."):
        rank, size = topology.expert_tp_rank, topology.expert_tp_size
    return Sharding(
        tuple(parameter.shape), marked.partition_dim if is_parallel else None, rank, size
    )


def _fill(parameter: Tensor, layout: Layout, source: Checkpoint) -> None:
    filled = 0
    for piece in layout.pieces():
        part = source.part(layout.names[piece.source], piece.rows, piece.columns)
        parameter[piece.local].copy_(part)
        filled += piece.local.stop - piece.local.start
    if layout.is_vocab:
        parameter[filled:].zero_()


def _check_all_used(source: Checkpoint, used: set[str], shape: Shape, topology: Topology) -> None:
    everywhere: Sequence[set[str] | None] = [used]
    if topology.world_size > 1:
        everywhere = [None] * topology.world_size
        dist.all_gather_object(everywhere, used)
    unused = set(source.tensors) - {name for part in everywhere for name in (part or ())}
    reasons = {name: why_ignored(name, shape) for name in sorted(unused)}
    if lost := [name for name, reason in reasons.items() if reason is None]:
        raise ConversionError(
            str(source.folder),
            f"{len(lost)} tensors have no place in the model: {', '.join(lost[:5])}.",
            "Add a rule for them to the family's table in megatron_reason/models/families/.",
        )
    if HEAD in reasons:
        _check_tied(source)
    if topology.rank == 0:
        for reason in sorted({reason for reason in reasons.values() if reason}):
            names = [name for name, why in reasons.items() if why == reason]
            _LOG.info("%s ignored, as %s", _shortened(names), reason)


def _check_tied(source: Checkpoint) -> None:
    """Refuse an LM head that is not the embedding config.json ties it to.

    Raises:
        ConversionError: they differ; transformers would then leave them untied.
    """
    rows, width = source.shape(HEAD)
    step = max(1, _BLOCK_BYTES // (4 * width))
    for begin in range(0, rows, step):
        part: list[Tensor] = [
            source.part(name, slice(begin, begin + step), slice(None)) for name in (HEAD, EMBEDDING)
        ]
        if not torch.equal(*part):
            raise ConversionError(
                str(source.folder),
                f"config.json ties {HEAD} to {EMBEDDING}, but the checkpoint stores two different "
                "tensors.",
                "Set tie_word_embeddings: false in its config.json if the head is one of its own.",
            )


def _shortened(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
