"""HF -> Megatron -> HF is the identity, on every layout, for every family."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import ConversionError
from tests.distributed import spawn
from tests.models import tiny

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2)]


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            found |= {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    return found


def round_trips(rank: int, world_size: int, layout: tuple[int, int], root: str) -> None:
    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.models.exporter import export_hf

    parallel = ParallelConfig(
        tensor_model_parallel_size=layout[0], pipeline_model_parallel_size=layout[1]
    )
    topology = init_topology(parallel)
    for folder in sorted(Path(root).iterdir()):
        model = ModelConfig(path=str(folder), dtype="bfloat16")
        stage = load_model(model, folder, parallel, topology)
        export_hf(stage, folder, Path(root).with_name("out") / folder.name, topology, {})


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: "tp{}-pp{}".format(*x))
def test_round_trip_is_bitwise_for_every_family(layout: tuple[int, int], tmp_path: Path) -> None:
    for family in tiny.FAMILIES:
        tiny.make(family, tmp_path / "in" / family, dtype="bfloat16", max_shard_size="30KB")
    spawn(round_trips, layout[0] * layout[1], layout, str(tmp_path / "in"))
    for family in tiny.FAMILIES:
        source, target = tmp_path / "in" / family, tmp_path / "out" / family
        before, after = tensors(source), tensors(target)
        assert before.keys() == after.keys(), family
        for name, tensor in before.items():
            assert after[name].dtype == tensor.dtype
            assert torch.equal(after[name], tensor), f"{family} {name}"
        others = [p for p in source.iterdir() if p.suffix != ".safetensors"]
        assert {p.name for p in source.iterdir()} == {p.name for p in target.iterdir()}
        for path in others:
            if not path.name.endswith(".index.json"):
                assert (target / path.name).read_bytes() == path.read_bytes()
        left = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
        right = json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
        assert left == right
        torch.testing.assert_close(
            tiny.logprobs(target, (1, 2, 3)), tiny.logprobs(source, (1, 2, 3)), atol=0, rtol=0
        )


def overrides_and_refusals(rank: int, world_size: int, root: str) -> None:
    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.models.exporter import export_hf

    topology = init_topology(ParallelConfig())
    source, target = Path(root) / "in", Path(root) / "out"
    stage = load_model(ModelConfig(path="x"), source, ParallelConfig(), topology)
    export_hf(stage, source, target, topology, {"rope_theta": 5e5, "max_position_embeddings": 512})
    before = json.loads((source / "config.json").read_text())
    after = json.loads((target / "config.json").read_text())
    assert after["max_position_embeddings"] == 512
    assert after["rope_parameters"]["rope_theta"] == 5e5
    after["max_position_embeddings"] = before["max_position_embeddings"]
    after["rope_parameters"] = before["rope_parameters"]
    assert after == before
    (source / "pytorch_model.bin").write_bytes(b"old weights")
    (source / "config.json").write_text(json.dumps({**before, "rope_theta": 1e4}))
    export_hf(stage, source, target, topology, {"rope_theta": 5e5})
    again = json.loads((target / "config.json").read_text())
    assert again["rope_theta"] == again["rope_parameters"]["rope_theta"] == 5e5
    assert not (target / "pytorch_model.bin").exists()
    with pytest.raises(ConversionError, match="no key 'max_positions'"):
        export_hf(stage, source, Path(root) / "bad", topology, {"max_positions": 1})
    assert not (Path(root) / "bad").exists()


def test_overrides_change_their_keys_alone(tmp_path: Path) -> None:
    tiny.make("Qwen2ForCausalLM-tied", tmp_path / "in")
    spawn(overrides_and_refusals, 1, str(tmp_path))
