import hashlib
import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_reason.errors import ConfigError, ConversionError, TopologyError
from megatron_reason.generation.templates import TEMPLATES
from megatron_reason.pipeline.conversion import (
    _template_text,
    bring_in,
    compare,
    convert,
    verify,
)
from tests.models.tiny import make


@pytest.fixture
def model(tmp_path):
    return make("Qwen2ForCausalLM-tied", tmp_path / "model", dtype="bfloat16")


def test_a_round_trip_in_two_stages_is_proven_lossless(model):
    found = verify(model, ["parallel.pipeline_model_parallel_size=2"])
    tensors = load_file(model / "model.safetensors")
    assert found.round_trip.num_tensors == len(tensors)
    assert found.round_trip.num_files >= 2
    assert found.round_trip.differences == ()
    assert 0 <= found.agreement.largest_logprob_gap < 1e-4
    assert found.agreement.top1_fraction == 1
    assert found.agreement.num_tokens == 128
    report = json.loads((model / "conversion_report.json").read_text())
    assert report["agreement"] == asdict(found.agreement)
    assert report["parallel"]["pipeline_model_parallel_size"] == 2
    name, tensor = next(iter(tensors.items()))
    digest = hashlib.sha256(tensor.view(torch.uint8).numpy()).hexdigest()
    assert report["tensor_sha256"][name] == f"bfloat16 {tuple(tensor.shape)} {digest}"
    assert report["tensor_sha256"].keys() == tensors.keys()


def test_a_model_in_float16_is_held_in_float32_and_comes_back_in_float16(tmp_path):
    model = make("LlamaForCausalLM-untied", tmp_path / "llama2", dtype="float16")
    config = json.loads((model / "config.json").read_text())
    # As checkpoints of Llama 2 say it.
    config["torch_dtype"] = config.pop("dtype")
    (model / "config.json").write_text(json.dumps(config, indent=2))
    assert config["torch_dtype"] == "float16"
    convert(model, tmp_path / "back", [])
    tensors, back = (
        load_file(folder / "model.safetensors") for folder in (model, tmp_path / "back")
    )
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == back[name].dtype == torch.float16
        assert torch.equal(tensor, back[name])
    found = verify(model, ["parallel.tensor_model_parallel_size=2"])
    assert found.round_trip.differences == ()
    assert found.agreement.largest_logprob_gap < 1e-4


def test_export_changes_only_what_was_asked(model, tmp_path):
    template = tmp_path / "no_system.jinja"
    template.write_text("{{ messages }}")
    changes = ["model.context_length=4096", f"chat_template={template}", "max_shard_size=30000"]
    convert(model, tmp_path / "long", changes)
    assert compare(model, tmp_path / "long").differences == ("chat_template.jinja", "config.json")
    assert (tmp_path / "long" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert len(list((tmp_path / "long").glob("model-*.safetensors"))) > 1
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (model, tmp_path / "long")
    )
    assert after == before | {"max_position_embeddings": 4096}


def test_a_chat_template_is_one_of_ours_or_a_file(model, tmp_path):
    with pytest.raises(ConfigError, match="no template called 'qwen_no_sistem'"):
        convert(model, tmp_path / "x", ["chat_template=qwen_no_sistem"])
    assert not (tmp_path / "x.log").exists()
    file = tmp_path / "mine.jinja"
    file.write_text("é", encoding="utf-8")
    assert _template_text(str(file)) == "é"
    assert _template_text("qwen_no_system") == TEMPLATES.get("qwen_no_system").jinja
    assert _template_text(None) is None


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


def test_compare_leaves_out_what_the_model_has_no_place_for(model, tmp_path):
    other = tmp_path / "other"
    bring_in(str(model), other)
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, model / "model.safetensors")
    found = compare(model, other)
    assert found.differences == ()
    assert found.ignored == {
        "lm_head.weight": "config.json ties the LM head to the input embedding"
    }
    assert compare(other, model).differences == ("lm_head.weight",)
