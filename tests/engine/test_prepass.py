"""Scores do not depend on rounds, packing or ranks, and come back in the order asked for."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.train import BatchConfig
from megatron_reason.engine import prepass
from megatron_reason.engine.packing import pack
from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import Role, TokenizedSample, TokenStats
from tests.distributed import spawn
from tests.engine import invariance
from tests.fixture_f import LOGITS, OF_SEQUENCES, TARGET
from tests.fixture_f import batch as fixture


def scores_agree(rank: int, world_size: int, folder: str) -> None:
    from transformers import AutoModelForCausalLM

    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology

    topology = init_topology(ParallelConfig())
    model = ModelConfig(path="x", dtype="float32")
    stage = load_model(model, Path(folder), ParallelConfig(), topology)
    samples = invariance.samples()
    batch = BatchConfig(max_tokens_per_microbatch=40)
    assert prepass.batch_for(samples, 40, topology) == batch
    # None is refused for its length; under context parallelism it takes a multiple of 2 CP.
    longest = max(sample.num_positions for sample in samples)
    assert longest % 6
    assert prepass.batch_for(samples, 1, topology).max_tokens_per_microbatch == longest
    shared = prepass.batch_for(samples, 1, replace(topology, cp_size=3))
    assert shared.max_tokens_per_microbatch == longest + -longest % 6
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
        assert score.min_logprob == pytest.approx(picked.min().item(), abs=1e-5)
        rounded = -picked.float().bfloat16().double().sum().item()
        assert score.bfloat16_nll_sum == pytest.approx(rounded, abs=0.04)
        assert score.bfloat16_nll_sum != -score.logprob_sum


def test_scores_equal_hugging_face_on_two_ranks(tmp_path: Path) -> None:
    spawn(scores_agree, 2, str(invariance.make_model(tmp_path, tied=False)))


def test_a_mean_in_bfloat16_is_what_a_script_gets_from_bfloat16_logits() -> None:
    """Padded rows, cross-entropy on bfloat16 logits, then sum and quotient, none of them wider."""
    generator = torch.Generator().manual_seed(3)
    ids_BL = torch.randint(1, 300, (3, 40), generator=generator)
    lengths = (40, 23, 2)
    logits_BLV = (3 * torch.randn(3, 40, 300, generator=generator)).bfloat16()
    loss_BL = cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten(), reduction="none"
    ).view(3, 39)
    mask_BL = torch.arange(1, 40) < torch.tensor(lengths)[:, None]
    means_B = (loss_BL * mask_BL).sum(1) / mask_BL.sum(1)
    assert means_B.dtype == torch.bfloat16
    samples = [
        TokenizedSample(str(row), Role.DEMO, tuple(ids_BL[row, :length].tolist()), 1)
        for row, length in enumerate(lengths)
    ]
    batch = pack(samples)
    logits_TV = torch.cat([logits_BLV[row, : n - 1] for row, n in enumerate(lengths)])
    logprob_T = -cross_entropy(logits_TV.float(), batch.target_T, reduction="none")
    stats = TokenStats(logprob_T=logprob_T, entropy_T=torch.zeros_like(logprob_T))
    scores = prepass.sequence_scores(stats, batch)
    assert [score.bfloat16_mean_nll for score in scores] == means_B.tolist()
    exact = [score.mean_nll for score in scores]
    assert exact != means_B.tolist()
    assert exact == pytest.approx(means_B.tolist(), rel=2**-6)
    parts = logprob_T.split([n - 1 for n in lengths])
    assert [score.min_logprob for score in scores] == [part.min().item() for part in parts]


def test_perplexities_and_entropies_of_the_fixture() -> None:
    stats = token_stats_from_logits(LOGITS, TARGET)
    scores = prepass.sequence_scores(stats, fixture((Role.DEMO,) * 4))
    found = [
        (one.mean_nll, math.exp(one.mean_nll), one.entropy_sum / one.num_tokens, one.logprob_sum)
        for one in scores
    ]
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), OF_SEQUENCES)
    tokens = sum(one.num_tokens for one in scores)
    assert sum(-one.logprob_sum for one in scores) / tokens == pytest.approx(1.1213323412)
    assert sum(one.entropy_sum for one in scores) / tokens == pytest.approx(0.9556979625)
