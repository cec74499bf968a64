import json
from pathlib import Path

from megatron_reason.cli.serve import folder_as_trained
from megatron_reason.config.model import ModelConfig
from tests.models.tiny import make


def test_what_the_run_changes_of_the_model_is_served(tmp_path: Path) -> None:
    source, target = make("LlamaForCausalLM-tied", tmp_path / "model"), tmp_path / "run" / "served"
    before = json.loads((source / "config.json").read_text(encoding="utf-8"))
    assert folder_as_trained(ModelConfig(path=str(source)), source, target) == source
    assert not target.exists()

    for theta in (5e5, 7e5):  # The second time there is a folder already.
        model = ModelConfig(path=str(source), rope_theta=theta, context_length=99)
        assert folder_as_trained(model, source, target) == target
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
        assert config.get("rope_parameters", config)["rope_theta"] == theta
        assert config["max_position_embeddings"] == 99
    assert config.keys() == before.keys()
    assert {path.name for path in target.iterdir()} == {path.name for path in source.iterdir()}
    weights = target / "model.safetensors"
    assert weights.is_symlink()
    assert weights.read_bytes() == (source / "model.safetensors").read_bytes()


def test_weights_are_found_from_everywhere(tmp_path: Path, monkeypatch) -> None:
    make("LlamaForCausalLM-tied", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    model = ModelConfig(path="model", context_length=99)
    served = folder_as_trained(model, Path("model"), tmp_path / "deep" / "er" / "served")
    assert (served / "model.safetensors").stat().st_size > 0
