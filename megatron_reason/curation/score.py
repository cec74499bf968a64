"""Stage `score`: perplexity and entropy of every response, by our own forward pass.

Source: OXA (arXiv 2603.16206) eq. 2 and its released script. `response_only` scores the response
text alone, without template or end token, and leaves its first token unscored when the tokenizer
adds no BOS: what that script does and the paper's notation allows. `prompt` conditions on the
rendered problem and scores the end of the turn too, as training sees it. `raw` conditions on the
text of the messages alone, without template, end token or separator: the log-probabilities of Data
Rewriting (arXiv 2509.15157), Table 3. Unlike in OXA's script, whose sums and means are bfloat16
(steps of 0.02 in perplexity near 3), everything after the logits is float32 or wider.
"""

import math
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import Field

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.train import BatchConfig
from megatron_reason.curation._parts import PartedOutput, rows_of
from megatron_reason.curation.base import RowwiseConfig, Stage, StageContext, StageResult, stage
from megatron_reason.generation.templates import Template, load_template
from megatron_reason.logs import progress
from megatron_reason.rewards.base import FAILED_STATUSES
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.records import Finish, Message, Status
from megatron_reason.schema.tables import Kind, TableReader

if TYPE_CHECKING:
    from megatron_reason.engine.prepass import SequenceScore

Context = Literal["response_only", "prompt", "raw"]
Row = dict[str, Any]
Refusal = tuple[str, Row, str]
"""Reason, row, detail."""


class ScoreConfig(RowwiseConfig):
    """Configuration of the stage `score`."""

    stage: Literal["score"] = "score"
    """Kind of stage."""
    context: Context = "response_only"
    """What a response is conditioned on."""
    where: Literal["all", "correct", "wrong"] = "all"
    """Which verdicts to score; the other rows are left out of the table."""
    parallel: ParallelConfig = ParallelConfig()
    """Layout of the model over the processes."""
    max_tokens: int = Field(default=32768, ge=2)
    """Longer responses are set aside."""
    max_tokens_per_microbatch: int = Field(default=4096, ge=2)
    """Tokens packed into one micro-batch; at least the longest response is used."""
    fp32_logits: bool = False
    """Multiply the LM head in float32 whatever the model's data type: slower, and free of the
    rounding of single logits that training and the released scripts have."""


@stage
class Score(Stage[ScoreConfig]):
    """Fills nll_sum, num_tokens, ppl, mean_entropy and scorer."""

    config_class = ScoreConfig
    runs_on = "ranks"

    def parallel(self) -> ParallelConfig:
        """Layout of the scoring model."""
        return self.config.parallel

    def run(self, context: StageContext) -> StageResult:
        """Score the table part by part on every rank together; rank 0 writes."""
        # Planning imports every stage and must not need Megatron.
        from megatron_reason.engine.prepass import score_sequences
        from megatron_reason.engine.startup import load_model
        from megatron_reason.engine.topology import from_first_rank

        config, topology = self.config, context.topology
        source = TableReader(context.inputs[config.table], Kind.SAMPLES)
        template = load_template(context.template, context.model_folder)
        model = load_model(context.model, context.model_folder, config.parallel, topology)
        parts: PartedOutput | None = None
        if topology.rank == 0:
            parts = PartedOutput(config, source, context.output, shard=config.shard)
        missing = from_first_rank(None if parts is None else parts.missing)
        num_rows = sum(part.stop - part.start for part in missing)
        with progress("score", num_rows, "responses", shown=topology.rank == 0) as bar:
            for part in missing:
                given = rows_of(part, source)
                rows, samples, refused = self._tokenized(self._chosen(given), template)
                bar.advance(len(given) - len(samples))
                scores = score_sequences(
                    model, samples, self._batch(samples), topology,
                    on_done=bar.advance, fp32_logits=config.fp32_logits,
                )  # fmt: skip
                if parts is not None:
                    scored, unscored = _scored(rows, scores, self._scorer(context, template))
                    with parts.open(part) as opened:
                        opened.write(pl.DataFrame(scored, schema=given.schema))
                        for reason, row, detail in (*refused, *unscored):
                            opened.quarantine.add(reason, row, detail, place=row["sample_id"])
        return StageResult(*parts.finish()) if parts is not None else StageResult(0)

    def _batch(self, samples: list[TokenizedSample]) -> BatchConfig:
        longest = max((sample.num_positions for sample in samples), default=1)
        tokens = max(self.config.max_tokens_per_microbatch, longest)
        return BatchConfig(max_tokens_per_microbatch=tokens)

    def _scorer(self, context: StageContext, template: Template) -> str:
        scorer = f"{context.model.path}:{self.config.context}"
        return f"{scorer}:{template.hash}" if self.config.context == "prompt" else scorer

    def _chosen(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self.config.where == "all":
            return frame
        wanted = [Status.OK] if self.config.where == "correct" else list(FAILED_STATUSES)
        return frame.filter(pl.col("status").is_in([str(status) for status in wanted]))

    def _tokenized(
        self, frame: pl.DataFrame, template: Template
    ) -> tuple[list[Row], list[TokenizedSample], list[Refusal]]:
        rows: list[Row] = []
        samples: list[TokenizedSample] = []
        refused: list[Refusal] = []
        for row in frame.iter_rows(named=True):
            sample = tokenize(row, template, self.config.context)
            if sample.num_targets < 1:
                refused.append(("nothing to score", row, f"{len(sample.ids)} tokens"))
            elif len(sample.ids) > self.config.max_tokens:
                refused.append(("longer than max_tokens", row, f"{len(sample.ids)} tokens"))
            else:
                rows.append(row)
                samples.append(sample)
        return rows, samples, refused


def _scored(
    rows: list[Row], scores: "list[SequenceScore]", scorer: str
) -> tuple[list[Row], list[Refusal]]:
    kept: list[Row] = []
    refused: list[Refusal] = []
    for row, score in zip(rows, scores, strict=True):
        mean_nll = -score.logprob_sum / score.num_tokens
        if not math.isfinite(mean_nll) or not math.isfinite(score.entropy_sum):
            refused.append(("non-finite perplexity", row, f"mean NLL {mean_nll}"))
            continue
        kept.append(
            row
            | {
                "nll_sum": -score.logprob_sum,
                "num_tokens": score.num_tokens,
                "ppl": math.exp(mean_nll),
                "mean_entropy": score.entropy_sum / score.num_tokens,
                "scorer": scorer,
            }
        )
    return kept, refused


def tokenize(row: dict[str, Any], template: Template, context: Context) -> TokenizedSample:
    """Ids of one sample row; the supervised ones are those to be scored."""
    if context == "response_only":
        ids = template.tokenizer(row["response"])["input_ids"]
        return TokenizedSample(row["sample_id"], Role.DEMO, tuple(ids), 1)
    messages = [Message(**turn) for turn in row["messages"]]
    if context == "raw":
        prompt = template.tokenizer("".join(turn.content for turn in messages))["input_ids"]
        response = template.tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        return TokenizedSample(row["sample_id"], Role.DEMO, (*prompt, *response), len(prompt))
    prompt = template.prompt_ids(messages)
    finished = row["finish"] != Finish.LENGTH
    response = template.response_ids(row["response"], finished=finished)
    return TokenizedSample(row["sample_id"], Role.DEMO, (*prompt, *response), len(prompt))
