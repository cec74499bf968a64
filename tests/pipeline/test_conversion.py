import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_reason.errors import ConversionError, TopologyError
from megatron_reason.pipeline.conversion import bring_in, compare, convert, verify
from tests.models.tiny import make


@pytest.fixture
def model(tmp_path):
    return make("Qwen2ForCausalLM-tied", tmp_path / "model", dtype="bfloat16")


def test_a_round_trip_in_two_stages_is_proven_lossless(model):
    found = verify(model, ["parallel.pipeline_model_parallel_size=2"])
    assert found.num_tensors == len(load_file(model / "model.safetensors"))
    assert found.num_files >= 2
    assert found.differences == ()
    assert found.largest_logprob_gap is not None
    assert 0 <= found.largest_logprob_gap < 1e-4


def test_export_changes_only_what_was_asked(model, tmp_path):
    convert(model, tmp_path / "long", ["model.context_length=4096"])
    assert compare(model, tmp_path / "long").differences == ("config.json",)
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (model, tmp_path / "long")
    )
    assert after == before | {"max_position_embeddings": 4096}


def test_layouts_that_do_not_fit_are_refused_before_anything_starts(model, tmp_path):
    with pytest.raises(TopologyError):
        convert(model, tmp_path / "x", ["parallel.tensor_model_parallel_size=7"])
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.log").exists()


def test_import_copies_a_model_and_refuses_a_folder_in_use(model, tmp_path):
    bring_in(str(model), tmp_path / "mine")
    assert compare(model, tmp_path / "mine").differences == ()
    with pytest.raises(ConversionError, match="there already"):
        bring_in(str(model), tmp_path / "mine")


def test_compare_sees_one_bit_one_shape_and_one_file(model, tmp_path):
    other = tmp_path / "other"
    bring_in(str(model), other)
    tensors = load_file(other / "model.safetensors")
    flipped, reshaped = sorted(tensors)[:2]
    tensors[flipped].view(torch.int16).view(-1)[0] ^= 1
    tensors[reshaped] = tensors[reshaped].view(1, -1)
    save_file(tensors, other / "model.safetensors")
    (other / "notes.json").write_text("{}")
    found = compare(model, other)
    assert set(found.differences) == {flipped, reshaped, "notes.json"}
    assert found.num_tensors == len(tensors) - 2
