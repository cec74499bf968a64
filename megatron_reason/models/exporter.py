"""The parameters of a parallel model -> a Hugging Face folder, one tensor at a time.

Shards meet on rank 0 tensor by tensor; no other rank ever holds a whole model. Vocabulary padding
is cut off, tied heads are written once, and every file that is not a weight comes back byte for
byte, except for configuration keys the caller overrides. Not here: layouts (`architecture.py`).
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from megatron_reason import platform
from megatron_reason.errors import ConversionError
from megatron_reason.files import atomic_folder, read_json, write_json
from megatron_reason.models.architecture import HFConfig, Rule, match, read_architecture
from megatron_reason.models.importer import (
    INDEX,
    file_of_tensors,
    global_parameters,
    hf_names,
    shard_dim,
)
from megatron_reason.schema.topology import Topology

_WEIGHTS = (
    "*.safetensors",
    INDEX,
    "pytorch_model*",
    "*.pt",
    "*.pth",
    "*.gguf",
    "*.h5",
    "*.msgpack",
)
"""Files that hold the source's weights; copying them would put old weights beside new ones."""


def export_hf(
    model: nn.Module, source_folder: Path, target_folder: Path, topology: Topology,
    overrides: Mapping[str, object],
) -> None:  # fmt: skip
    """Write the model as a folder that transformers and vLLM load without any flag.

    All ranks call it. Tensors keep the data types and the distribution over files of the source.

    Args:
        model: this rank's stage, on the layout of `topology`.
        source_folder: the checkpoint it was imported from.
        target_folder: replaced atomically.
        topology: this rank's place.
        overrides: keys of config.json to change (`rope_theta`, `max_position_embeddings`).

    Raises:
        ConversionError: tensors that do not add up to the source's, or an unknown override.
    """
    config, architecture = read_architecture(source_folder)
    tensors = _whole_tensors(model, architecture.rules(config), config, topology)
    if topology.rank != 0:
        for _ in tensors:
            pass
    else:
        with atomic_folder(target_folder) as folder:
            _copy_other_files(source_folder, folder, overrides)
            _write_tensors(tensors, source_folder, folder)
    if topology.world_size > 1:
        dist.barrier()


@dataclass(frozen=True)
class _Owned:
    """A parameter as its pipeline stage describes it to the other ranks."""

    name: str
    shape: tuple[int, ...]
    dim: int | None
    dtype: torch.dtype
    stage: int


def _whole_tensors(
    model: nn.Module, rules: list[Rule], config: HFConfig, topology: Topology
) -> Iterator[tuple[str, Tensor]]:
    """(HF name, tensor) of the whole model on rank 0; nothing on others, which must iterate too."""
    local = dict(global_parameters(model))
    seen: set[str] = set()
    for owned in _owners(local, topology):
        rule, layer = match(rules, owned.name)
        names = hf_names(rule, layer)
        if names[0] in seen:
            continue
        seen.update(names)
        whole = _meet_on_rank_0(local.get(owned.name), owned, rule, topology)
        if whole is None:
            continue
        if rule.is_vocab:
            whole = whole[: config.vocab_size]
        yield from zip(names, rule.to_hf(whole, config), strict=True)


def _owners(local: Mapping[str, nn.Parameter], topology: Topology) -> list[_Owned]:
    """Every parameter of the model once, in the order of the pipeline, on every rank."""
    mine = [
        _Owned(name, tuple(p.shape), shard_dim(p), p.dtype, topology.pp_rank)
        for name, p in local.items()
    ]
    if topology.world_size == 1:
        return mine
    parts: list[list[_Owned] | None] = [None] * topology.world_size
    dist.all_gather_object(parts, mine)
    unique = {owned.name: owned for part in reversed(parts) if part for owned in part}
    return sorted(unique.values(), key=lambda owned: (owned.stage, owned.name))


def _meet_on_rank_0(
    parameter: nn.Parameter | None, owned: _Owned, rule: Rule, topology: Topology
) -> Tensor | None:
    """The whole tensor on rank 0, gathered over TP inside its stage and sent down the pipeline."""
    whole: Tensor | None = None
    is_owner = topology.pp_rank == owned.stage and topology.dp_rank == 0
    if is_owner:
        assert parameter is not None, f"stage {owned.stage} lost its parameter {owned.name}"
        whole = _gathered(parameter.data, owned, rule, topology)
    sender = _rank_of_stage(owned.stage, topology)
    if sender == 0:
        return whole if topology.rank == 0 else None
    if topology.rank == sender:
        assert whole is not None, "the sender is an owner"
        dist.send(whole.contiguous(), dst=0)
    if topology.rank != 0:
        return None
    shape = list(owned.shape)
    if owned.dim is not None:
        shape[owned.dim] *= topology.tp_size
    received = torch.empty(shape, dtype=owned.dtype, device=platform.device())
    dist.recv(received, src=sender)
    return received.cpu()


def _gathered(local: Tensor, owned: _Owned, rule: Rule, topology: Topology) -> Tensor:
    if owned.dim is None or topology.tp_group is None:
        return local.cpu() if topology.rank == 0 else local
    shards = [torch.empty_like(local) for _ in range(topology.tp_size)]
    dist.all_gather(shards, local.contiguous(), group=topology.tp_group)
    blocks = zip(*(shard.chunk(rule.num_blocks, owned.dim) for shard in shards), strict=True)
    whole = torch.cat([piece for block in blocks for piece in block], owned.dim)
    return whole.cpu() if topology.rank == 0 else whole


def _rank_of_stage(stage: int, topology: Topology) -> int:
    """Global rank with TP rank 0 and DP rank 0 of a pipeline stage."""
    return 0 if topology.pp_group is None else stage * topology.tp_size * topology.dp_size


def _write_tensors(tensors: Iterator[tuple[str, Tensor]], source: Path, folder: Path) -> None:
    """Write each file as soon as all its tensors are there."""
    files = file_of_tensors(source)
    missing = Counter(files.values())
    described = {file: _described(source / file) for file in missing}
    pending: dict[str, dict[str, Tensor]] = {file: {} for file in missing}
    written: dict[str, str] = {}
    num_bytes = 0
    for name, tensor in tensors:
        if name not in files:
            raise ConversionError(name, "the source has no such tensor.", "Report this family.")
        file = files[name]
        dtypes, metadata = described[file]
        pending[file][name] = tensor.to(dtypes[name]).clone(memory_format=torch.contiguous_format)
        num_bytes += pending[file][name].nbytes
        written[name] = file
        missing[file] -= 1
        if not missing[file]:
            save_file(pending.pop(file), folder / file, metadata=metadata)
    if lost := sorted(files.keys() - written.keys()):
        raise ConversionError(
            str(source), f"no parameter gives {', '.join(lost[:5])}.", "Report this family."
        )
    if (source / INDEX).is_file():
        index = {"metadata": {"total_size": num_bytes}, "weight_map": dict(sorted(written.items()))}
        write_json(folder / INDEX, index)


def _described(file: Path) -> tuple[dict[str, torch.dtype], dict[str, str]]:
    """Data types of the tensors in a file of the source, and the file's metadata."""
    with safe_open(file, framework="pt") as handle:
        dtypes = {name: handle.get_slice(name)[:1].dtype for name in list(handle.keys())}
        return dtypes, handle.metadata() or {"format": "pt"}


def _copy_other_files(source: Path, folder: Path, overrides: Mapping[str, object]) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and not any(path.match(pattern) for pattern in _WEIGHTS):
            shutil.copyfile(path, folder / path.name)
    if overrides:
        config: dict[str, Any] = read_json(source / "config.json")
        for key, value in overrides.items():
            _override(config, key, value)
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")


def _override(config: dict[str, Any], key: str, value: object) -> None:
    """Set `key` wherever the checkpoint keeps it: at the top, among the rotary parameters, both."""
    rope: dict[str, Any] | None = config.get("rope_parameters")
    if key == "rope_theta" and rope is not None:
        rope[key] = value
        if key in config:
            config[key] = value
    elif key == "rope_theta" or key in config:
        config[key] = value
    else:
        raise ConversionError(
            "config.json", f"there is no key '{key}' to override.", "Check the key's spelling."
        )
