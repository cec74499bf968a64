"""Scores do not depend on rounds, packing or ranks, and come back in the order asked for."""

from pathlib import Path

import pytest
import torch

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.train import BatchConfig
from tests.distributed import spawn
from tests.engine import invariance


def scores_agree(rank: int, world_size: int, folder: str) -> None:
    from transformers import AutoModelForCausalLM

    from megatron_reason.engine import prepass
    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology

    topology = init_topology(ParallelConfig())
    model = ModelConfig(path="x", dtype="float32")
    stage = load_model(model, Path(folder), ParallelConfig(), topology)
    samples = invariance.samples()
    batch = BatchConfig(max_tokens_per_microbatch=40)
    whole = prepass.score_sequences(stage, samples, batch, topology)
    prepass.SEQUENCES_PER_ROUND = 5
    backwards = prepass.score_sequences(stage, samples[::-1], batch, topology)[::-1]
    for one, other in zip(backwards, whole, strict=True):
        assert one.logprob_sum == pytest.approx(other.logprob_sum, abs=1e-4)
        assert one.num_tokens == other.num_tokens
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    for sample, score in zip(samples, whole, strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([sample.ids[:-1]])).logits[0]
        logprob = torch.log_softmax(logits[sample.num_prompt_tokens - 1 :], dim=1)
        picked = logprob.gather(1, torch.tensor(sample.ids[sample.num_prompt_tokens :])[:, None])
        entropy = -(logprob.exp() * logprob).sum()
        assert score.logprob_sum == pytest.approx(picked.sum().item(), abs=1e-4)
        assert score.entropy_sum == pytest.approx(entropy.item(), abs=1e-4)
        assert score.num_tokens == sample.num_targets


def test_scores_equal_hugging_face_on_two_ranks(tmp_path: Path) -> None:
    spawn(scores_agree, 2, str(invariance.make_model(tmp_path, tied=False)))
