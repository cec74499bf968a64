"""Hugging Face safetensors -> the parameters of a parallel model, one tensor at a time.

Every parameter of the stage is filled exactly once, and every tensor of the checkpoint is used by
some rank, or the import fails. Not here: how a tensor's layout changes (`architecture.py`).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from megatron_reason.errors import ConversionError
from megatron_reason.files import read_json
from megatron_reason.models.architecture import Rule, match, read_architecture
from megatron_reason.schema.topology import Topology

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


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
    with open_tensors(hf_folder) as source, torch.no_grad():
        for name, parameter in global_parameters(model):
            rule, layer = match(rules, name)
            names = hf_names(rule, layer)
            whole = rule.to_megatron([source.tensor(n) for n in names], config)
            parameter.copy_(_shard(whole, parameter, rule, topology, name))
            used.update(names)
        _check_all_used(source.names, used, topology, hf_folder)


class TensorSource:
    """Tensors of a checkpoint by name, read when asked for."""

    def __init__(self, folder: Path, handles: dict[str, Any]) -> None:
        self._folder = folder
        self._handles = handles

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._handles)

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`.

        Raises:
            ConversionError: the checkpoint has no such tensor.
        """
        if name not in self._handles:
            raise ConversionError(
                str(self._folder),
                f"the checkpoint has no tensor '{name}'.",
                "Is it complete, and is its class the one config.json names?",
            )
        return self._handles[name].get_tensor(name)


@contextmanager
def open_tensors(folder: Path) -> Iterator[TensorSource]:
    """Open the safetensors of a checkpoint, one file or an index.

    Raises:
        ConversionError: neither is there, or the index names a missing file.
    """
    with ExitStack() as stack:
        handles: dict[str, Any] = {}
        for file in sorted(set(file_of_tensors(folder).values())):
            handle = stack.enter_context(safe_open(folder / file, framework="pt"))
            handles.update(dict.fromkeys(handle.keys(), handle))
        yield TensorSource(folder, handles)


def file_of_tensors(folder: Path) -> dict[str, str]:
    """File name of each tensor of a checkpoint.

    Raises:
        ConversionError: no safetensors, or the index names a missing file.
    """
    if (folder / INDEX).is_file():
        weight_map: dict[str, str] = read_json(folder / INDEX)["weight_map"]
        if missing := sorted({f for f in weight_map.values() if not (folder / f).is_file()}):
            raise ConversionError(
                str(folder), f"the index names {', '.join(missing)}.", "Fetch the missing files."
            )
        return weight_map
    if not (folder / SINGLE).is_file():
        raise ConversionError(
            str(folder),
            f"there is neither {SINGLE} nor {INDEX}.",
            "Save the model as safetensors: model.save_pretrained(folder).",
        )
    with safe_open(folder / SINGLE, framework="pt") as handle:
        return dict.fromkeys(handle.keys(), SINGLE)


def global_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of a stage by name, with layers numbered over the whole model."""
    layers: Any = model.get_submodule("decoder.layers")
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if name.startswith("decoder.layers."):
            parts[2] = str(layers[int(parts[2])].layer_number - 1)
        yield ".".join(parts), parameter


def hf_names(rule: Rule, layer: str | None) -> list[str]:
    """Hugging Face's names of a rule's tensors in a layer."""
    return [name if layer is None else name.replace("{i}", layer) for name in rule.hf]


def shard_dim(parameter: nn.Parameter) -> int | None:
    """Dimension along which Megatron shards a parameter, None if every rank holds all of it."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return None
    marked: Any = parameter
    return marked.partition_dim


def _shard(
    whole: Tensor, parameter: nn.Parameter, rule: Rule, topology: Topology, name: str
) -> Tensor:
    dim = shard_dim(parameter)
    local = whole
    if dim is not None:
        if rule.is_vocab:
            padding = parameter.shape[0] * topology.tp_size - whole.shape[0]
            local = torch.nn.functional.pad(whole, (0, 0, 0, padding))
        blocks = local.chunk(rule.num_blocks, dim)
        local = torch.cat([b.chunk(topology.tp_size, dim)[topology.tp_rank] for b in blocks], dim)
    if local.shape != parameter.shape:
        raise ConversionError(
            name,
            f"the checkpoint's tensor has shape {tuple(whole.shape)}; this rank's share of it is "
            f"{tuple(local.shape)}, the model expects {tuple(parameter.shape)}.",
            "Is config.json the one that belongs to these weights?",
        )
    return local


def _check_all_used(names: set[str], used: set[str], topology: Topology, folder: Path) -> None:
    everywhere: Sequence[set[str] | None] = [used]
    if topology.world_size > 1:
        everywhere = [None] * topology.world_size
        dist.all_gather_object(everywhere, used)
    unused = sorted(names - {name for part in everywhere for name in (part or ())})
    if unused:
        raise ConversionError(
            str(folder),
            f"{len(unused)} tensors have no place in the model: {', '.join(unused[:5])}.",
            "Add a rule for them to the family's table in megatron_reason/models/families/.",
        )
