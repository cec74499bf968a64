"""The safetensors files of a Hugging Face folder: what is in them, parts of them, and new ones.

Reading maps the files and copies only what is sliced; writing goes from front to back without ever
holding a file. Not here: what the tensors mean (`architecture.py`), and every other file
(`companions.py`).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from megatron_reason.errors import ConversionError
from megatron_reason.files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor as its file describes it."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """Tensors of a checkpoint by name, read when asked for."""

    def __init__(self, folder: Path, handles: Mapping[str, Any]) -> None:
        self.folder = folder
        """Where it lies."""
        self.files: dict[str, dict[str, Stored]] = {}
        """Tensors of each file, in the order in which they lie there."""
        self.metadata: dict[str, dict[str, str]] = {}
        """Metadata of each file."""
        self._handle_of: dict[str, Any] = {}
        for file, handle in handles.items():
            names = list(handle.offset_keys())
            self.files[file] = {name: self._stored(name, handle) for name in names}
            self.metadata[file] = dict(handle.metadata() or {"format": "pt"})
            self._handle_of.update(dict.fromkeys(names, handle))

    @property
    def tensors(self) -> dict[str, Stored]:
        """Every tensor, in the order of the files."""
        return {name: stored for file in self.files.values() for name, stored in file.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor called `name`.

        Raises:
            ConversionError: the checkpoint has no such tensor.
        """
        return tuple(self._slice(name).get_shape())

    def part(self, name: str, rows: slice, columns: slice) -> Tensor:
        """View of a rectangle of a tensor; of a vector, of its `rows`."""
        tensor = self._slice(name)
        return tensor[rows] if len(tensor.get_shape()) == 1 else tensor[rows, columns]

    def _slice(self, name: str) -> Any:  # noqa: ANN401 - the library's own slice
        if name not in self._handle_of:
            raise ConversionError(
                str(self.folder),
                f"the checkpoint has no tensor '{name}'.",
                "Is it complete, and is its class the one config.json names?",
            )
        return self._handle_of[name].get_slice(name)

    def _stored(self, name: str, handle: Any) -> Stored:  # noqa: ANN401 - the library's own handle
        found = handle.get_slice(name)
        kind = found.get_dtype()
        if kind not in _DTYPES:
            raise ConversionError(
                str(self.folder),
                f"the tensor '{name}' is stored as {kind}; only {', '.join(_DTYPES)} are read.",
                "Use a checkpoint that is not quantised.",
            )
        return Stored(_DTYPES[kind], tuple(found.get_shape()))


@contextmanager
def open_checkpoint(folder: Path) -> Iterator[Checkpoint]:
    """Map the safetensors of a checkpoint, one file or those of an index.

    Raises:
        ConversionError: neither is there, the index names a missing file, or a data type that is
            not read.
    """
    with ExitStack() as stack:
        handles = {
            file: stack.enter_context(safe_open(folder / file, framework="pt"))
            for file in _file_names(folder)
        }
        yield Checkpoint(folder, handles)


def write_safetensors(
    path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str], blocks: Iterable[Tensor]
) -> None:
    """Write a safetensors file front to back.

    Args:
        path: new file.
        tensors: what it will hold, in this order; wider data types must come first.
        metadata: its metadata.
        blocks: the tensors' elements in order, in contiguous pieces on the CPU.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, stored in tensors.items():
        begin, end = end, end + stored.nbytes
        header[name] = {
            "dtype": _NAMES[stored.dtype],
            "shape": list(stored.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        written = 0
        for block in blocks:
            elements: Any = block.reshape(-1).view(torch.uint8).numpy()
            left = memoryview(elements)
            written += len(left)
            while left:  # a raw write may stop short, at 2 GiB for one
                left = left[file.write(left) :]
    assert written == end, f"{path.name} got {written} bytes of tensors, {end} were announced"


def _file_names(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ConversionError(
                str(folder), f"the index names {', '.join(missing)}.", "Fetch the missing files."
            )
        return names
    if not (folder / SINGLE).is_file():
        raise ConversionError(
            str(folder),
            f"there is neither {SINGLE} nor {INDEX}.",
            "Save the model as safetensors: model.save_pretrained(folder).",
        )
    return [SINGLE]
