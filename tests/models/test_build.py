"""Same model as Hugging Face: log-probabilities agree for every family, packed or not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import ConversionError
from megatron_reason.schema.batch import Role, TokenizedSample
from tests.distributed import spawn
from tests.models import grid, tiny

TEXT = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
    "May. How many clips did Natalia sell altogether in April and May? In May she sold 48 / 2 = 24 "
    "clips, so altogether she sold 48 + 24 = 72 clips. The answer is 72."
)


def packing_and_padding(rank: int, world_size: int, root: str) -> None:
    from megatron_reason.config.train import BatchConfig
    from megatron_reason.engine.prepass import score_sequences
    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.models.build import head_weight, vocab_size

    parallel = ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True)
    topology = init_topology(parallel)
    for folder in sorted(Path(root).iterdir()):
        stage = load_model(ModelConfig(path="x", dtype="float32"), folder, parallel, topology)
        assert vocab_size(stage) == tiny.VOCAB
        rows = head_weight(stage)
        assert rows.shape[0] * 2 == tiny.VOCAB + 1
        if topology.tp_rank == 1:
            assert not rows[-1].any(), "padding is zero"
        for most in (None, 1):
            batch = BatchConfig(max_tokens_per_microbatch=80, max_sequences_per_microbatch=most)
            scores = score_sequences(stage, grid.samples(), batch, topology)
            for sample, score in zip(grid.samples(), scores, strict=True):
                expected = tiny.logprobs(folder, sample.ids).sum().item()
                assert score.logprob_sum == pytest.approx(expected, abs=2e-4), folder.name
                assert score.num_tokens == len(sample.ids) - 1


def test_packing_changes_nothing_and_padding_is_zero(tmp_path: Path) -> None:
    """Agreement with transformers on every layout is `test_exporter.py`."""
    for family in ("Qwen2ForCausalLM-tied", "Qwen3MoeForCausalLM-untied"):
        tiny.make(family, tmp_path / family)
    spawn(packing_and_padding, 2, str(tmp_path))


def smollm2_agrees(
    rank: int, world_size: int, layout: tuple[int, int], folder: str, expected: list[float]
) -> None:  # fmt: skip
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from transformers import AutoTokenizer

    from megatron_reason.engine.forward import PLAIN, statistics_step
    from megatron_reason.engine.packing import pack
    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology

    parallel = ParallelConfig(
        tensor_model_parallel_size=layout[0], pipeline_model_parallel_size=layout[1]
    )
    topology = init_topology(parallel)
    model = ModelConfig(path=folder, dtype="float32")
    stage = load_model(model, Path(folder), parallel, topology)
    ids = tuple(AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"])
    batch = pack([TokenizedSample("t", Role.DEMO, ids, 1)])
    with torch.no_grad():
        collected = get_forward_backward_func()(
            forward_step_func=statistics_step(topology, PLAIN, lambda s, _: s.logprob_T),
            data_iterator=iter([batch]), model=[stage], num_microbatches=1,
            seq_length=batch.num_tokens, micro_batch_size=1, forward_only=True,
        )  # fmt: skip
    if topology.is_last_stage:
        torch.testing.assert_close(collected[0], torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(1, 1), (3, 1), (1, 2)], ids=lambda x: "tp{}-pp{}".format(*x))
def test_smollm2_agrees_with_transformers_on_real_text(
    layout: tuple[int, int], smollm2: Path
) -> None:
    from transformers import AutoTokenizer

    ids = tuple(AutoTokenizer.from_pretrained(smollm2)(TEXT)["input_ids"])
    expected = tiny.logprobs(smollm2, ids).tolist()
    spawn(smollm2_agrees, layout[0] * layout[1], layout, str(smollm2), expected)


def rotary_frequencies(rank: int, world_size: int, folder: str) -> None:
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.models.build import build_model

    topology = init_topology(ParallelConfig())

    def frequencies(**changes: Any) -> torch.Tensor:
        model = ModelConfig(path="x", dtype="float32", **changes)
        return build_model(Path(folder), model, ParallelConfig(), topology).rotary_pos_emb.inv_freq

    torch.testing.assert_close(frequencies(), 1e4 ** -(torch.arange(4) / 4))
    torch.testing.assert_close(frequencies(rope_theta=1e6), 1e6 ** -(torch.arange(4) / 4))
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text())
    for rope in (
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0},
        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ):
        file.write_text(json.dumps({**config, "rope_parameters": rope}))
        with pytest.raises(ConversionError, match=f"'{rope['rope_type']}' with .*factor"):
            frequencies()


def test_rotary_base_can_be_changed_and_unknown_scalings_are_refused(tmp_path: Path) -> None:
    spawn(rotary_frequencies, 1, str(tiny.make("Qwen2ForCausalLM-tied", tmp_path)))
