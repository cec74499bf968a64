from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_reason.errors import ConversionError
from megatron_reason.files import write_json
from megatron_reason.models.checkpoint_files import open_checkpoint, write_safetensors

TENSORS = {
    "wide": torch.arange(12.0).reshape(3, 4),
    "narrow": torch.arange(10).to(torch.bfloat16).reshape(5, 2),
    "vector": torch.arange(3).to(torch.float16),
}


def test_a_file_is_read_in_rectangles_and_comes_back_byte_for_byte(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt", "name": "é"})
    with open_checkpoint(tmp_path) as found:
        assert set(found.tensors) == set(TENSORS)
        assert torch.equal(found.part("wide", slice(1, 3), slice(2, 4)), TENSORS["wide"][1:3, 2:4])
        assert found.part("vector", slice(1, 2), slice(0, 1)).tolist() == [1.0]
        stored = found.files["model.safetensors"]
        assert [(t.dtype, t.shape, t.nbytes) for t in stored.values()] == [
            (torch.float32, (3, 4), 48), (torch.bfloat16, (5, 2), 20), (torch.float16, (3,), 6),
        ]  # fmt: skip
        metadata = found.metadata["model.safetensors"]
    assert metadata["name"] == "é"
    blocks = (rows for name in stored for rows in TENSORS[name].split(2))
    write_safetensors(tmp_path / "again", stored, metadata, blocks)
    again = load_file(tmp_path / "again")
    assert all(torch.equal(again[name], tensor) for name, tensor in TENSORS.items())
    one = {"format": "pt"}
    save_file(TENSORS, tmp_path / "theirs", metadata=one)
    write_safetensors(tmp_path / "ours", stored, one, (TENSORS[name] for name in stored))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(ConversionError, match=match), open_checkpoint(tmp_path) as found:
            found.shape("lost")

    refused("neither model.safetensors nor")
    save_file(TENSORS, tmp_path / "model.safetensors")
    refused("no tensor 'lost'")
    save_file({"codes": torch.zeros(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    refused("'codes' is stored as I8; only F64, F32")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    write_json(tmp_path / "model.safetensors.index.json", index)
    refused(r"the index names model-00001-of-00002\.safetensors")


def test_a_file_that_was_announced_otherwise_is_not_written(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as found:
        stored = found.tensors
    with pytest.raises(AssertionError, match="48 bytes of tensors, 74 were announced"):
        write_safetensors(tmp_path / "x", stored, {}, [TENSORS["wide"]])
