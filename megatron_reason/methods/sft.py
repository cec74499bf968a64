"""SFT: maximum likelihood on demonstrations.

Loss. L = mean of -log p(x_t).
Source: SRFT (arXiv 2506.19767) eq. 1, OXA (arXiv 2603.16206) eq. 3
Data. Demonstrations. Which ones makes the baseline: a random selection is SFT, the lowest
perplexities are SFT_LP, OXA's Gaussian selection with this loss is OXA_MLE.
Expect. Entropy on the demonstrations falls; low-perplexity data teach little.
Deviations. The default aggregation is that of OXA's released code, a mean over sequences of token
means. Stock trainers take the token mean, which gives a chain of 30k tokens 30 times the weight of
one of 1k. The released trainer of Data Rewriting averages the token means of micro-batches of 4
(mean chunk_mean_token_mean) and adds up the gradients of the 32 that each of its 2 ranks has:
gradients 32 times as large, which a run gets by dividing train.optim.clip_grad by 32. It keeps
parameters and Adam's moments in bfloat16 and cuts sequences at 2,048 tokens; here the parameters'
main copies and the moments are float32, and `mix` leaves longer sequences out, as OXA's code does
from 32,768 on. OXA's released script for SFT_LP reads a file named after a minimum of 10,000
tokens, which is its ablation of low perplexity and length; SFT_LP here has no minimum (`select`'s
min_tokens).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from megatron_reason.schema.batch import PackedBatch, Role, TokenStats
from megatron_reason.schema.method import (
    ChunkMean,
    Method,
    MethodConfig,
    Needs,
    Preset,
    Term,
    TrainState,
    UpdatePlan,
    method,
)


class SFTConfig(MethodConfig):
    """Configuration of SFT."""

    name: Literal["sft"] = "sft"
    """Name of the method."""
    demos_per_update: int = Field(default=128, ge=1)
    """Sequences imitated per optimizer update."""
    mean: ChunkMean = "seq_mean_token_mean"
    """Aggregation of the cross-entropy over the global batch."""
    chunk: int = Field(default=4, ge=1)
    """Sequences of a chunk, for the mean by chunks: a released code's micro-batch."""


@method
class SFT(Method[SFTConfig]):
    """Cross-entropy on demonstrations."""

    config_class = SFTConfig
    needs = Needs(roles=frozenset({Role.DEMO}))
    presets = (
        Preset(
            "oxa",
            SFTConfig(demos_per_update=128, mean="seq_mean_token_mean"),
            "OXA (arXiv 2603.16206) eq. 3 and its released code: SFT, SFT_LP and OXA_MLE",
        ),
        Preset(
            "oxa_150k",
            SFTConfig(demos_per_update=384, mean="seq_mean_token_mean"),
            "OXA's scaling study on 150,000 samples",
        ),
        Preset(
            "srft",
            SFTConfig(demos_per_update=128, mean="token_mean"),
            "SRFT (arXiv 2506.19767) eq. 1, batch 128; that it is a token mean is inferred",
        ),
        Preset(
            "lese",
            SFTConfig(demos_per_update=16, mean="seq_mean_token_mean"),
            "LESE (anonymous submission) eq. 1, which divides by the length; batch 16",
        ),
        Preset(
            "luffy",
            SFTConfig(demos_per_update=64, mean="token_mean"),
            "SFT baseline of LUFFY's repository, batch 64; that it is a token mean is inferred",
        ),
        Preset(
            "data_rewriting",
            SFTConfig(demos_per_update=256, mean="chunk_mean_token_mean", chunk=4),
            "Data Rewriting (arXiv 2509.15157), batch 256; micro-batches of 4 as released",
        ),
    )

    def plan(self, state: TrainState) -> UpdatePlan:  # noqa: ARG002 - the plan never changes
        """The same number of demonstrations every update."""
        return UpdatePlan({Role.DEMO: self.config.demos_per_update})

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002
        """Cross-entropy alone."""
        return [Term("ce", over=Role.DEMO, mean=self.config.mean, chunk=self.config.chunk)]

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:  # noqa: ARG002
        """-log p of each target."""
        return {"ce": -stats.logprob_T}
