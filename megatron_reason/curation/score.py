"""Stage `score`: perplexity and entropy of every response, by our own forward pass.

Source: OXA (arXiv 2603.16206) eq. 2 and its released script. `response_only` scores the response
text alone, without template or end token, and leaves its first token unscored when nothing stands
before it (`bos`): what that script does and the paper's notation allows. `prompt` conditions on the
rendered problem and scores the end of the turn too, as training sees it. `raw` conditions on the
text of the messages alone, without template, end token or separator: the log-probabilities of Data
Rewriting (arXiv 2509.15157), Table 3.

That script cuts responses at 32,768 tokens and takes terms, sum and mean in bfloat16, in steps of
0.02 in perplexity near 3: `overlong: truncate` and `ppl_dtype: bfloat16`. Here longer responses are
set aside and everything after the logits is float32 or wider, unless these are asked for.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

import polars as pl
from pydantic import Field, model_validator

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.curation._parts import PartedOutput, rows_of
from megatron_reason.curation.base import RowwiseConfig, Stage, StageContext, StageResult, stage
from megatron_reason.errors import ConfigError
from megatron_reason.generation.templates import Template, load_template
from megatron_reason.logs import progress
from megatron_reason.rewards.base import FAILED_STATUSES
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.records import SCORE_FIELDS, Finish, Message, Status
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
    bos: str = Field(default="tokenizer", min_length=1)
    """What stands before the text where there is no template: what the `tokenizer` puts there,
    `none`, or a token of the vocabulary (`<|endoftext|>`). After one of these the first token of
    the text is scored, too."""
    max_tokens: int = Field(default=32768, ge=2)
    """Most tokens of a text, prompt included."""
    overlong: Literal["refuse", "truncate"] = "refuse"
    """Whether longer texts are set aside, or scored as far as `max_tokens`."""
    ppl_dtype: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` rounds the terms, the sum and the mean behind `ppl` as OXA's script does; the
    other columns stay as they are."""
    max_tokens_per_microbatch: int = Field(default=4096, ge=2)
    """Tokens packed into one micro-batch; at least the longest response is used."""
    fp32_logits: bool = False
    """Multiply the LM head in float32 whatever the model's data type: slower, and free of the
    rounding of single logits that training and the released scripts have."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.context == "prompt" and self.bos != "tokenizer":
            raise ValueError("the template begins the text: bos is for response_only and raw")
        if self.ppl_dtype == "bfloat16" and self.fp32_logits:
            raise ValueError("ppl_dtype: bfloat16 repeats a script whose logits are bfloat16, too")
        return self


@stage
class Score(Stage[ScoreConfig]):
    """Fills nll_sum, num_tokens, ppl, mean_entropy, min_logprob and scorer."""

    config_class = ScoreConfig
    runs_on = "ranks"

    def parallel(self) -> ParallelConfig:
        """Layout of the scoring model."""
        return self.config.parallel

    def run(self, context: StageContext) -> StageResult:
        """Score the table part by part on every rank together; rank 0 writes."""
        # Planning imports every stage and must not need Megatron.
        from megatron_reason.engine.prepass import batch_for, score_sequences
        from megatron_reason.engine.startup import load_model
        from megatron_reason.engine.topology import from_first_rank

        config, topology = self.config, context.topology
        source = TableReader(context.inputs[config.table], Kind.SAMPLES)
        template = load_template(context.template, context.model_folder)
        _check_bos(config.bos, template, f"stage '{config.name}' bos")
        model = load_model(context.model, context.model_folder, config.parallel, topology)
        parts: PartedOutput | None = None
        if topology.rank == 0:
            parts = PartedOutput(config, source, context)
        missing = from_first_rank(None if parts is None else parts.missing)
        num_rows = sum(part.stop - part.start for part in missing)
        with progress("score", num_rows, "responses", shown=topology.rank == 0) as bar:
            for part in missing:
                given = rows_of(part, source)
                rows, samples, refused = self._tokenized(self._chosen(given), template)
                bar.advance(len(given) - len(samples))
                batch = batch_for(samples, config.max_tokens_per_microbatch, topology)
                scores = score_sequences(
                    model, samples, batch, topology,
                    on_done=bar.advance, fp32_logits=config.fp32_logits,
                )  # fmt: skip
                if parts is not None:
                    scored, unscored = self._scored(rows, scores, context, template)
                    with parts.open(part) as opened:
                        opened.write(pl.DataFrame(scored, schema=given.schema))
                        for reason, row, detail in (*refused, *unscored):
                            opened.quarantine.add(reason, row, detail, place=row["sample_id"])
        return StageResult(*parts.finish()) if parts is not None else StageResult(0)

    def _scorer(self, context: StageContext, template: Template) -> str:
        """Name of the model and of every setting that moves a perplexity."""
        config = self.config
        settings = (
            (template.hash, config.context == "prompt"),
            (f"bos={config.bos}", config.bos != "tokenizer"),
            (f"first={config.max_tokens}", config.overlong == "truncate"),
            ("fp32_logits", config.fp32_logits),
            (f"ppl={config.ppl_dtype}", config.ppl_dtype != "float32"),
        )
        chosen = [text for text, is_chosen in settings if is_chosen]
        return ":".join([context.model.path, config.context, *chosen])

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
            sample = tokenize(row, template, self.config.context, self.config.bos)
            if self.config.overlong == "truncate":
                sample = replace(sample, ids=sample.ids[: self.config.max_tokens])
            # Of an empty response, a template or `bos` would have something scored all the same.
            if sample.num_targets < 1 or not row["response"].strip():
                refused.append(("nothing to score", row, f"{len(sample.ids)} tokens"))
            elif len(sample.ids) > self.config.max_tokens:
                refused.append(("longer than max_tokens", row, f"{len(sample.ids)} tokens"))
            else:
                rows.append(row)
                samples.append(sample)
        return rows, samples, refused

    def _scored(
        self, rows: list[Row], scores: "list[SequenceScore]", context: StageContext,
        template: Template,
    ) -> tuple[list[Row], list[Refusal]]:  # fmt: skip
        kept: list[Row] = []
        refused: list[Refusal] = []
        scorer = self._scorer(context, template)
        for row, score in zip(rows, scores, strict=True):
            is_exact = self.config.ppl_dtype == "float32"
            mean_nll = score.mean_nll if is_exact else score.bfloat16_mean_nll
            if not math.isfinite(mean_nll) or not math.isfinite(score.entropy_sum):
                refused.append(("non-finite perplexity", row, f"mean NLL {mean_nll}"))
                continue
            filled = (
                -score.logprob_sum, score.num_tokens, math.exp(mean_nll),
                score.entropy_sum / score.num_tokens, score.min_logprob, scorer,
            )  # fmt: skip
            kept.append(row | dict(zip(SCORE_FIELDS, filled, strict=True)))
        return kept, refused


def _check_bos(bos: str, template: Template, where: str) -> None:
    tokenizer = template.tokenizer
    if bos not in {"tokenizer", "none", *tokenizer.get_vocab()}:
        special = ", ".join(tokenizer.all_special_tokens)
        raise ConfigError(
            where,
            f"'{bos}' is no token of this model's vocabulary.",
            f"Write 'tokenizer', 'none', or a token such as one of {special}.",
        )


def tokenize(
    row: Row, template: Template, context: Context, bos: str = "tokenizer"
) -> TokenizedSample:
    """Ids of one sample row; the supervised ones are those to be scored.

    Args:
        row: a row of the samples table.
        template: the model's tokenizer and chat template.
        context: what the response is conditioned on.
        bos: what stands before a text without template; see `ScoreConfig.bos`.
    """
    if context == "prompt":
        prompt = template.prompt_ids([Message(**turn) for turn in row["messages"]])
        finished = row["finish"] != Finish.LENGTH
        response = template.response_ids(row["response"], finished=finished)
    elif context == "raw":
        prompt = _text_ids("".join(turn["content"] for turn in row["messages"]), template, bos)
        response = template.tokenizer(row["response"], add_special_tokens=False)["input_ids"]
    else:
        prompt, response = [], _text_ids(row["response"], template, bos)
    # The first id of all has nothing before it that could predict it.
    return TokenizedSample(row["sample_id"], Role.DEMO, (*prompt, *response), max(len(prompt), 1))


def _text_ids(text: str, template: Template, bos: str) -> list[int]:
    tokenizer: Any = template.tokenizer
    if bos == "tokenizer":
        return tokenizer(text)["input_ids"]
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if bos == "none" else [tokenizer.convert_tokens_to_ids(bos), *ids]
