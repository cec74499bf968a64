import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_reason.errors import ConversionError
from megatron_reason.models.sources import resolve_model


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path), tmp_path / "cache") == tmp_path


def test_the_built_in_model_loads_without_a_flag(smollm2: Path) -> None:
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(smollm2).num_hidden_layers == 30
    assert resolve_model("smollm2-135m", smollm2.parent) == smollm2


@pytest.mark.slow
def test_two_processes_unpack_it_once(tmp_path: Path, smollm2: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from megatron_reason.models.sources import resolve_model\n"
        "folder = resolve_model('smollm2-135m', Path(sys.argv[1]))\n"
        "print((folder / 'model.safetensors').stat().st_ino)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    inodes = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert inodes[0] == inodes[1]
    found, expected = tmp_path / "smollm2-135m", load_file(smollm2 / "model.safetensors")
    unpacked = load_file(found / "model.safetensors")
    assert unpacked.keys() == expected.keys()
    assert all(torch.equal(unpacked[name], tensor) for name, tensor in expected.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == [".smollm2-135m.lock", "smollm2-135m"]


def test_something_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="'smollm2-135m' for the built-in model"):
        resolve_model("no such/model name", tmp_path)


def test_a_model_to_be_trained_from_scratch_gets_random_ones_once(tmp_path):
    source = Path("examples/tiny_lab/model")
    made = resolve_model(str(source), tmp_path, random_weights=True)
    weights = (made / "model.safetensors").read_bytes()
    assert (made / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert resolve_model(str(source), tmp_path, random_weights=True) == made
    again = resolve_model(str(source), tmp_path / "elsewhere", random_weights=True)
    assert (again / "model.safetensors").read_bytes() == weights
