"""Stage `score`: perplexity and entropy of every response, by our own forward pass.

Source: OXA (arXiv 2603.16206) eq. 2 and its released script. `response_only` scores the response
text alone, without template or end token, and leaves its first token unscored when the tokenizer
adds no BOS: what that script does and the paper's notation allows. `prompt` conditions on the
rendered problem and scores the end of the turn too, as training sees it. Unlike in the script,
whose sums and means are bfloat16 (steps of 0.02 in perplexity near 3), everything after the logits
is float32 or wider.
"""

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import Field

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.train import BatchConfig
from megatron_reason.curation._parts import shard_of, write_shard
from megatron_reason.curation.base import RowwiseConfig, Stage, StageContext, StageResult, stage
from megatron_reason.generation.templates import Template, load_template
from megatron_reason.rewards.base import FAILED_STATUSES
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.records import Finish, Message, Status
from megatron_reason.schema.tables import Kind, Quarantine, TableReader, write_table

if TYPE_CHECKING:
    from megatron_reason.engine.prepass import SequenceScore

Context = Literal["response_only", "prompt"]
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
        """Score the table on every rank together; rank 0 writes."""
        # Planning imports every stage and must not need Megatron.
        from megatron_reason.engine.prepass import score_sequences
        from megatron_reason.engine.startup import load_model

        source = TableReader(context.inputs[self.config.table], Kind.SAMPLES)
        shard = shard_of(self.config, source, self.config.shard)
        batches = [*source.batches(start=shard.start, stop=shard.stop)]
        frame = self._chosen(pl.concat([source.empty(), *batches]))
        template = load_template(context.template, context.model_folder)
        rows, samples, refused = self._tokenized(frame, template)
        model = load_model(
            context.model, context.model_folder, self.config.parallel, context.topology
        )
        longest = max((s.num_positions for s in samples), default=1)
        batch = BatchConfig(
            max_tokens_per_microbatch=max(self.config.max_tokens_per_microbatch, longest)
        )
        scores = score_sequences(
            model, samples, batch, context.topology, fp32_logits=self.config.fp32_logits
        )
        scorer = f"{context.model.path}:{self.config.context}"
        if self.config.context == "prompt":
            scorer += f":{template.hash}"
        scored, unscored = _scored(rows, scores, scorer)
        counts = Counter(reason for reason, _, _ in (*refused, *unscored))
        if context.topology.rank == 0:
            write_table(context.output, Kind.SAMPLES, pl.DataFrame(scored))
            with Quarantine(context.output) as quarantine:
                for reason, row, detail in (*refused, *unscored):
                    quarantine.add(reason, row, detail, place=row["sample_id"])
            if self.config.shard is not None:
                write_shard(context.output, shard)
        return StageResult(len(scored), counts)

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
    prompt = template.prompt_ids([Message(**turn) for turn in row["messages"]])
    finished = row["finish"] != Finish.LENGTH
    response = template.response_ids(row["response"], finished=finished)
    return TokenizedSample(row["sample_id"], Role.DEMO, (*prompt, *response), len(prompt))
