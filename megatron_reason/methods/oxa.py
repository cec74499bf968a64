"""OXA: imitate low-confidence truths, suppress high-confidence errors.

Loss. L = mean -log p(x_t) over truths + alpha mean -log(1 - p(x_t)) over errors.
Source: OXA (arXiv 2603.16206) eq. 3 (imitate) and eqs. 4-5 (suppress)
Settings. OXA_Full: the defaults, or a preset. OXA_MLE: preset mle. No setting depends on the size.
Data. Verified teacher responses selected by perplexity, and the model's own wrong answers of lowest
perplexity. The data make the method: `select` promotes, `generate` makes the errors.
Expect. `train/ul` falls as the model stops believing its errors. Alpha is small because, token by
token, the push exceeds that of likelihood by p / (1 - p).
Deviations. The paper's "batch size 128" counts the truths; an update takes 128 + 128, as released.
Each role is a mean over its own sequences of token means. The released clamp leaves tokens above
p = 1 - 1e-6 without gradient; `clamp: exact` follows the paper. The released code takes a
micro-batch for truths or for errors: of several sequences in one, an error drops the truths. Here
none is dropped. Appendix A.1.3 lets the gradients at other tokens explode; none exceeds p.
The data of examples/oxa and examples/presets mostly follow the released scripts where these differ
from the paper. Perplexity: of the response alone, without problem or template, its first token
unscored where the tokenizer has no BOS; eq. 2 leaves that open. Ours is in float32, the script's in
bfloat16 (`ppl_dtype`), and its fallback for want of memory, off by one token, is not repeated.
Selection: remainders of the bins' shares are handed out, ties are random, the result is shuffled;
`exact: paper` floors the shares. One response a problem, as in the paper; the committed script has
a cap of 10, its training files are named after 1. From its second round on it takes a response
again (`exact: fixed` does not). Its post-processing of OXA_MLE enforces no cap, `select` does.
Errors: perplexity at least 1.2, at most 25,000 tokens, `<think>` put before them, the lowest of
each problem, then the lowest 50,000; the paper has no bound and no prefix. They come from
DeepSeek-R1-Distill-Qwen-7B, a reading of released file names, which also name xverifier, where ours
is math-verify; the paper trains a model on a little of the teacher's data instead.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from megatron_reason.ops.logmath import Clamp, log1mexp
from megatron_reason.schema.batch import PackedBatch, Role, TokenStats
from megatron_reason.schema.method import (
    Method,
    MethodConfig,
    Needs,
    Preset,
    Term,
    TrainState,
    UpdatePlan,
    method,
)


class OXAConfig(MethodConfig):
    """Configuration of OXA."""

    name: Literal["oxa"] = "oxa"
    """Name of the method."""
    demos_per_update: int = Field(default=128, ge=1)
    """Sequences imitated per optimizer update."""
    negatives_per_update: int = Field(default=128, ge=0)
    """Sequences suppressed per optimizer update; 0 gives OXA-MLE."""
    suppress_weight: float = Field(default=1e-4, ge=0)
    """Weight of the unlikelihood term (alpha in eq. 5)."""
    clamp: Clamp = "official"
    """`official` stops the gradient above p = 1 - 1e-6, as released; `exact` does not."""


@method
class OXA(Method[OXAConfig]):
    """Cross-entropy on truths plus unlikelihood on errors."""

    config_class = OXAConfig
    needs = Needs(roles=frozenset({Role.DEMO, Role.NEGATIVE}))
    presets = (
        Preset(
            "paper",
            OXAConfig(demos_per_update=128, suppress_weight=1e-4, clamp="exact"),
            "OXA (arXiv 2603.16206) eqs. 3-5 and Table 3: OXA_Full as written, 1.5B and 7B",
        ),
        Preset(
            "released",
            OXAConfig(
                demos_per_update=128, negatives_per_update=128, suppress_weight=1e-4,
                clamp="official",
            ),
            "OXA's released code: OXA_Full, 1.5B and 7B",
        ),
        Preset(
            "mle",
            OXAConfig(demos_per_update=128, negatives_per_update=0),
            "OXA_MLE, eq. 3 and the released code, 1.5B and 7B",
        ),
        Preset(
            "mle_150k",
            OXAConfig(demos_per_update=384, negatives_per_update=0),
            "OXA_MLE in the scaling study on 150,000 samples",
        ),
    )  # fmt: skip

    def required(self) -> Needs:
        """Without negatives only demonstrations are needed."""
        return self.needs if self.config.negatives_per_update else Needs(frozenset({Role.DEMO}))

    def plan(self, state: TrainState) -> UpdatePlan:  # noqa: ARG002 - the plan never changes
        """Truths and errors in fixed numbers."""
        counts = {Role.DEMO: self.config.demos_per_update}
        if self.config.negatives_per_update:
            counts[Role.NEGATIVE] = self.config.negatives_per_update
        return UpdatePlan(counts)

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002
        """Cross-entropy over truths, weighted unlikelihood over errors."""
        ce = Term("ce", over=Role.DEMO, mean="seq_mean_token_mean")
        ul = Term(
            "ul", over=Role.NEGATIVE, mean="seq_mean_token_mean", coef=self.config.suppress_weight
        )
        return [ce, ul] if self.config.negatives_per_update else [ce]

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:  # noqa: ARG002
        """-log p and -log(1 - p) of each target."""
        losses = {"ce": -stats.logprob_T}
        if self.config.negatives_per_update:
            losses["ul"] = -log1mexp(stats.logprob_T, clamp=self.config.clamp)
        return losses
