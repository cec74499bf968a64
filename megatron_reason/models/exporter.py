"""The parameters of a parallel model -> a Hugging Face folder, streamed in blocks of rows.

Rank 0 writes the files front to back; whoever holds rows of the next block sends it just those, so
that no rank ever holds more than its shard and a block. Vocabulary padding is in no block, tied
heads are written once, and the index lists what was written. Not here: which rank holds what
(`layout.py`), and the files beside the weights (`companions.py`).
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_reason import platform
from megatron_reason.errors import ConversionError
from megatron_reason.files import atomic_folder, read_json, write_json
from megatron_reason.models.architecture import read_architecture, why_ignored
from megatron_reason.models.checkpoint_files import (
    INDEX,
    SINGLE,
    Checkpoint,
    Stored,
    open_checkpoint,
    write_safetensors,
)
from megatron_reason.models.companions import Changes, copy_companions
from megatron_reason.models.importer import global_parameters, sharding_of
from megatron_reason.models.layout import Piece, Sharding, lay_out
from megatron_reason.schema.topology import Topology

_BLOCK_BYTES = 1 << 22
_AS_IT_IS = Changes()
_HOST = torch.device("cpu")


def export_hf(
    model: nn.Module, source_folder: Path, target_folder: Path, topology: Topology,
    changes: Changes = _AS_IT_IS, *, max_shard_size: int | None = None,
) -> None:  # fmt: skip
    """Write the model as a folder that transformers and vLLM load without any flag.

    All ranks call it. Tensors keep the data types of the source.

    Args:
        model: this rank's stage, on the layout of `topology`.
        source_folder: the checkpoint it was imported from.
        target_folder: replaced atomically.
        topology: this rank's place.
        changes: what the folder says otherwise than the source.
        max_shard_size: largest file in bytes; None keeps the source's distribution over files.

    Raises:
        ConversionError: tensors that do not add up to the source's, or a disk that has no room for
            them.
    """
    with open_checkpoint(source_folder) as source:
        stream = TensorStream(model, source, topology)
        files = _files(source, stream.tensors, max_shard_size)
        metadata = dict(next(iter(source.metadata.values())))

    def blocks(tensors: Iterable[str]) -> Iterator[Tensor]:
        for name in tensors:
            yield from stream.blocks(name)

    if topology.rank != 0:
        for tensors in files.values():
            for _ in blocks(tensors):
                pass
    else:
        _require_space(target_folder, _num_bytes(files))
        with atomic_folder(target_folder) as folder:
            copy_companions(source_folder, folder, changes)
            for file, tensors in files.items():
                write_safetensors(folder / file, tensors, metadata, blocks(tensors))
            _write_index(folder, files, source_folder)
    if topology.world_size > 1:
        dist.barrier()


class TensorStream:
    """A parallel model's tensors under Hugging Face's names, sent to rank 0 as often as one likes.

    All ranks make it and call it alike.

    Args:
        model: this rank's stage, on the layout of `topology`.
        source: the checkpoint it was imported from.
        topology: this rank's place.
        device: where `held` has tensors.

    Raises:
        ConversionError: tensors that do not add up to the source's.
    """

    def __init__(
        self, model: nn.Module, source: Checkpoint, topology: Topology, device: torch.device = _HOST
    ) -> None:
        self._local = dict(global_parameters(model))
        self._origins = _origins(self._local, source, topology)
        self._topology = topology
        self._device = device
        self.tensors: dict[str, Stored] = {
            name: stored for name, stored in source.tensors.items() if name in self._origins
        }
        """Data type and shape of each, in the source's order."""

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Rows of a tensor from first to last, on rank 0; other ranks send, and get nothing.

        Every rank must iterate to the end. A block may be a view of a parameter.
        """
        gathering = self._gathering(name)
        for begin, end in gathering.blocks():
            block = gathering.block(begin, end)
            if block is not None:
                yield block

    def fill(self, name: str, out: Tensor | None) -> None:
        """Put a tensor together in `out` on rank 0; other ranks have none, and send."""
        gathering = self._gathering(name)
        for begin, end in gathering.blocks():
            gathering.block(begin, end, None if out is None else out[begin:end])

    def held(self, name: str) -> Tensor | None:
        """A tensor in one piece on rank 0, there; a view of the parameter where it can be.

        None where it has to be put together, and on every other rank. No rank waits for another.
        """
        gathering = self._gathering(name)
        (rank, piece), *others = gathering.origin.pieces
        if others or rank != 0 or gathering.shard is None or self._topology.rank != 0:
            return None
        return gathering.shard[piece.local].to(self._device, gathering.stored.dtype)

    def _gathering(self, name: str) -> "_Gathering":
        origin = self._origins[name]
        parameter = self._local.get(origin.parameter)
        shard = None if parameter is None else parameter.data
        return _Gathering(self.tensors[name], origin, shard, self._topology)


@dataclass(frozen=True)
class _Held:
    """A shard as its holder describes it to the other ranks."""

    name: str
    sharding: Sharding
    rank: int


@dataclass(frozen=True)
class _Origin:
    """Where the rows of a Hugging Face tensor are."""

    parameter: str
    """Megatron's name of the parameter they are in."""
    pieces: Sequence[tuple[int, Piece]]
    """Global rank and piece."""


def _origins(
    local: Mapping[str, nn.Parameter], source: Checkpoint, topology: Topology
) -> dict[str, _Origin]:
    """Where every tensor of the checkpoint is; the same on every rank."""
    config, architecture = read_architecture(source.folder)
    rules, shape = architecture.rules(config), architecture.shape(config)
    origins: dict[str, _Origin] = {}
    for name, shards in _shards(local, topology).items():
        layouts = [(held.rank, lay_out(name, held.sharding, rules, config, source.shape))
                   for held in shards]  # fmt: skip
        for number, hf in enumerate(layouts[0][1].names):
            pieces = [(rank, piece) for rank, layout in layouts for piece in layout.pieces()
                      if piece.source == number]  # fmt: skip
            origins.setdefault(hf, _Origin(name, pieces))
    if lost := [n for n in source.tensors if n not in origins and not why_ignored(n, shape)]:
        raise ConversionError(
            str(source.folder), f"no parameter gives {', '.join(lost[:5])}.", "Report this family."
        )
    return origins


def _shards(local: Mapping[str, nn.Parameter], topology: Topology) -> dict[str, list[_Held]]:
    """Each shard of each parameter once, from the first rank that holds it."""
    mine = [
        _Held(name, sharding_of(name, parameter, topology), topology.rank)
        for name, parameter in local.items()
    ]
    everywhere: list[list[_Held] | None] = [mine]
    if topology.world_size > 1:
        everywhere = [None] * topology.world_size
        dist.all_gather_object(everywhere, mine)
    shards: dict[str, dict[int, _Held]] = {}
    for held in (held for part in everywhere for held in part or ()):
        number = 0 if held.sharding.dim is None else held.sharding.rank
        shards.setdefault(held.name, {}).setdefault(number, held)
    return {name: list(by_number.values()) for name, by_number in shards.items()}


def _files(
    source: Checkpoint, wanted: Mapping[str, Stored], max_shard_size: int | None
) -> dict[str, dict[str, Stored]]:
    """Tensors of each file to be written, wider data types first, else in the source's order."""
    files = {
        file: {name: stored for name, stored in tensors.items() if name in wanted}
        for file, tensors in source.files.items()
    }
    if max_shard_size is not None:
        kept = [tensor for tensors in files.values() for tensor in tensors.items()]
        parts = _split(kept, max_shard_size)
        names = [f"model-{n + 1:05}-of-{len(parts):05}.safetensors" for n in range(len(parts))]
        files = dict(zip(names if len(parts) > 1 else [SINGLE], map(dict, parts), strict=True))
    return {
        file: dict(sorted(tensors.items(), key=lambda tensor: -tensor[1].dtype.itemsize))
        for file, tensors in files.items()
        if tensors
    }


def _split(tensors: Sequence[tuple[str, Stored]], limit: int) -> list[list[tuple[str, Stored]]]:
    """Consecutive tensors of at most `limit` bytes together, or one that is larger alone."""
    parts: list[list[tuple[str, Stored]]] = []
    room = 0
    for name, stored in tensors:
        if not parts or stored.nbytes > room:
            parts.append([])
            room = limit
        parts[-1].append((name, stored))
        room -= stored.nbytes
    return parts


@dataclass(frozen=True)
class _Gathering:
    """One tensor on its way from those who hold it to rank 0; every rank must go to the end."""

    stored: Stored
    origin: _Origin
    shard: Tensor | None
    """This rank's part of the parameter; None if it has none."""
    topology: Topology

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First row and end of each block."""
        rows = self.stored.shape[0]
        step = max(1, _BLOCK_BYTES * rows // self.stored.nbytes)
        for begin in range(0, rows, step):
            yield begin, min(begin + step, rows)

    def block(self, begin: int, end: int, out: Tensor | None = None) -> Tensor | None:
        """Rows of the tensor on rank 0, in `out` if there is one; None on ranks that send."""
        extent = [end - begin, *self.stored.shape[1:]]
        for rank, piece in self.origin.pieces:
            part = _within(piece, begin, end)
            if part is None or self.topology.rank not in (0, rank):
                continue
            values = self._values(rank, part, extent)
            if values is None:
                continue
            if out is None and list(values.shape) == extent:
                return values.cpu()
            out = torch.empty(extent, dtype=self.stored.dtype) if out is None else out
            rectangle = (slice(part.rows.start - begin, part.rows.stop - begin), part.columns)
            out[rectangle[: out.dim()]].copy_(values)
        return out

    def _values(self, rank: int, part: Piece, extent: Sequence[int]) -> Tensor | None:
        """What `rank` holds of a block, on rank 0; None on the rank that sent it."""
        if self.topology.rank != rank:
            columns = [len(range(*part.columns.indices(count))) for count in extent[1:]]
            shape = [part.rows.stop - part.rows.start, *columns]
            values = torch.empty(shape, dtype=self.stored.dtype, device=platform.device())
            dist.recv(values, src=rank)
            return values
        assert self.shard is not None, "a piece is with the rank that holds its parameter"
        values = self.shard[part.local].to(self.stored.dtype).contiguous()
        if rank == 0:
            return values
        dist.send(values, dst=0)
        return None


def _within(piece: Piece, begin: int, end: int) -> Piece | None:
    """What of a piece lies in rows `begin` to `end` of its tensor."""
    low, high = max(piece.rows.start, begin), min(piece.rows.stop, end)
    if low >= high:
        return None
    first = piece.local.start + low - piece.rows.start
    return Piece(piece.source, slice(low, high), piece.columns, slice(first, first + high - low))


def _write_index(folder: Path, files: Mapping[str, Mapping[str, Stored]], source: Path) -> None:
    if len(files) == 1 and SINGLE in files:
        return
    old = read_json(source / INDEX).get("metadata", {}) if (source / INDEX).is_file() else {}
    where = {name: file for file, tensors in files.items() for name in tensors}
    index = {
        "metadata": {**old, "total_size": _num_bytes(files)},
        "weight_map": dict(sorted(where.items())),
    }
    write_json(folder / INDEX, index)


def _num_bytes(files: Mapping[str, Mapping[str, Stored]]) -> int:
    return sum(stored.nbytes for tensors in files.values() for stored in tensors.values())


def _require_space(target_folder: Path, num_bytes: int) -> None:
    """Refuse before the first byte what cannot fit beside an older folder of that name."""
    target_folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target_folder.parent).free
    if free < num_bytes:
        raise ConversionError(
            str(target_folder),
            f"the weights take {num_bytes / 1e9:.3g} GB; {free / 1e9:.3g} GB are free.",
            "Free space, or write to a larger disk. What is there already is untouched.",
        )
