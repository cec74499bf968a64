"""HF -> Megatron -> HF is the identity, on every layout, for every family, and so is the maths."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import ConversionError
from tests.distributed import spawn
from tests.models import grid, tiny


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            found |= {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    return found


def test_every_family_comes_back_and_agrees_on_every_layout(tmp_path: Path) -> None:
    outcomes = grid.measure(tmp_path)
    assert [(outcome.layout, outcome.family) for outcome in outcomes] == grid.cases()
    for outcome in outcomes:
        assert outcome.files_differ == [], outcome
        assert outcome.gap < 1e-4, outcome


def other_distributions(rank: int, world_size: int, root: str) -> None:
    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.models.exporter import export_hf

    topology = init_topology(ParallelConfig())
    source, folder = Path(root) / "in", Path(root) / "out"
    config = ModelConfig(path="x", dtype="float32")
    stage = load_model(config, source, ParallelConfig(), topology)
    before = tensors(source)
    export_hf(stage, source, folder, topology, max_shard_size=30_000)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 3
    assert files[-1] == f"model-{len(files):05}-of-{len(files):05}.safetensors"
    sizes = [sum(t.nbytes for t in load_file(folder / file).values()) for file in files]
    assert max(sizes) <= max(30_000, max(t.nbytes for t in before.values()))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"] == {n: f for f in files for n in load_file(folder / f)}
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(folder).items())
    export_hf(stage, source, folder, topology, max_shard_size=10**9)
    assert [path.name for path in folder.glob("model*")] == ["model.safetensors"]
    stage.get_parameter("decoder.final_layernorm.weight").data.add_(1)
    export_hf(stage, source, folder, topology)
    name = "model.norm.weight"
    assert torch.equal(tensors(folder)[name], before[name] + 1)

    # More than the model has a place for, for reasons; less than it gives, for none.
    file, meta = source / "model.safetensors", {"format": "pt"}
    frequencies = {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    head = {"lm_head.weight": before["model.embed_tokens.weight"].clone()}
    save_file({**before, **frequencies, **head}, file, metadata=meta)
    export_hf(stage, source, folder, topology)
    assert tensors(folder).keys() == before.keys()
    save_file({**before, "model.extra": torch.ones(1)}, file, metadata=meta)
    with pytest.raises(ConversionError, match=r"no parameter gives model\.extra"):
        export_hf(stage, source, Path(root) / "bad", topology)
    save_file({n: t for n, t in before.items() if n != name}, file, metadata=meta)
    with pytest.raises(ConversionError, match=r"no tensor 'model\.norm\.weight'"):
        export_hf(stage, source, Path(root) / "bad", topology)
    assert not (Path(root) / "bad").exists()


def test_a_disk_without_room_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    tiny.make("Qwen2ForCausalLM-tied", tmp_path / "in")
    target = tmp_path / "disk"
    target.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(target)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system")
    try:
        spawn(onto_a_small_disk, 1, str(tmp_path))
    finally:
        subprocess.run(["umount", str(target)], check=True)


def onto_a_small_disk(rank: int, world_size: int, root: str) -> None:
    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.models.exporter import export_hf

    topology = init_topology(ParallelConfig())
    source, disk = Path(root) / "in", Path(root) / "disk"
    config = ModelConfig(path="x", dtype="float32")
    stage = load_model(config, source, ParallelConfig(), topology)
    with pytest.raises(ConversionError, match=r"the weights take .* GB; .* GB are free"):
        export_hf(stage, source, disk / "out", topology)
    assert not [*disk.iterdir()]


def test_files_are_as_large_as_asked_and_hold_what_the_model_has(tmp_path: Path) -> None:
    tiny.make("Qwen2ForCausalLM-tied", tmp_path / "in")
    spawn(other_distributions, 1, str(tmp_path))
