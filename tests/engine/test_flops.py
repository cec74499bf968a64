from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_reason.config.gpus import GPUS, peak_flops
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.schema.batch import Role, TokenizedSample
from tests.distributed import spawn
from tools.make_tiny_model import make_tiny_model


def counts(_rank: int, _world_size: int, root: str) -> None:
    """A forward pass as torch counts it, times three, less the half of attention that is masked."""
    from transformers import AutoModelForCausalLM

    from megatron_reason.engine.flops import flops_of
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.models.build import build_model, vocab_size

    topology = init_topology(ParallelConfig())
    model = ModelConfig(path="x", dtype="float32")
    stage = build_model(Path(root), model, ParallelConfig(), topology)
    lengths = (5, 12)
    samples = [TokenizedSample(str(n), Role.DEMO, (1,) * (n + 1), 1) for n in lengths]
    found = flops_of(stage.config, vocab_size(stage), samples)
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    other = AutoModelForCausalLM.from_pretrained(root, **eager)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for sample in samples:
            other(torch.tensor([sample.ids[:-1]]))
    config = other.config
    head_dim = config.hidden_size // config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or head_dim
    width = config.num_attention_heads * head_dim
    masked = sum(n * n - n * (n + 1) // 2 for n in lengths)
    whole = counter.get_total_flops() - 4 * config.num_hidden_layers * width * masked
    assert found == 3 * whole
    half = [TokenizedSample("a", Role.DEMO, (1,) * 13, 7)]
    less = 6 * config.hidden_size * config.vocab_size * (12 - 6)
    (_, long) = samples
    assert flops_of(stage.config, vocab_size(stage), half) == (
        flops_of(stage.config, vocab_size(stage), [long]) - less
    )


@pytest.mark.parametrize("family", ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"])
def test_operations_are_those_of_the_models_matrices(tmp_path: Path, family: str) -> None:
    spawn(counts, 1, str(make_tiny_model(family, tmp_path)))


def test_peaks_are_known_by_the_drivers_names() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == GPUS["H100-80"].flops
    assert peak_flops("NVIDIA H200") == GPUS["H200-141"].flops
    assert peak_flops("NVIDIA A100-SXM4-40GB") == GPUS["A100-40"].flops
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    others = ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H200 NVL", "NVIDIA H800", "NVIDIA H100")
    assert {peak_flops(unknown) for unknown in ("CPU, 2 thread(s) per process", *others)} == {None}
