"""Stage `mix`: tables of selected samples become one table of token ids, ready to be packed.

The only place where training text is tokenised, by the template's construction: prompt, response,
stop tokens. A response that its token limit cut keeps its open end, because it never emitted a stop
token and must not be trained on one. Not here: order and batches (`engine`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import polars as pl
from pydantic import Field

from megatron_reason.config.base import Strict
from megatron_reason.curation.base import Stage, StageConfig, StageContext, StageResult, stage
from megatron_reason.errors import DataError
from megatron_reason.generation.templates import Template, load_template
from megatron_reason.logs import get_logger, progress
from megatron_reason.schema.records import Finish, Message
from megatron_reason.schema.tables import Kind, Quarantine, read_table, write_table

_LOGGER = get_logger(__name__)


class MixInput(Strict):
    """One table that goes into the mixture."""

    table: str
    """Stage whose samples are taken."""
    as_role: Literal["demo", "negative"] | None = None
    """Role given to all its rows; None keeps the role that `select` gave."""


class MixConfig(StageConfig):
    """Configuration of the stage `mix`."""

    stage: Literal["mix"] = "mix"
    """Kind of stage."""
    tables: tuple[MixInput, ...] = Field(..., min_length=1)
    """Tables mixed, in this order."""
    max_tokens: int = Field(default=4096, ge=2)
    """Longest sequence, prompt and response together."""
    overlong: Literal["drop", "refuse"] = "drop"
    """Set longer sequences aside, or stop."""

    def inputs(self) -> tuple[str, ...]:
        """The tables mixed."""
        return tuple(part.table for part in self.tables)


@stage
class Mix(Stage[MixConfig]):
    """Tokenises samples and writes them with their roles."""

    config_class = MixConfig

    def run(self, context: StageContext) -> StageResult:
        """Write `tokens.parquet`.

        Raises:
            SchemaError: samples without a role.
            DataError: a tokenizer that is not the model's, a sample in two roles, overlong
                sequences where they are refused, or nothing left.
        """
        template = load_template(context.template, context.model_folder)
        quarantine = Quarantine.empty()
        samples = self._read(context, quarantine)
        rows: list[dict[str, Any]] = []
        with progress("tokenise", len(samples), "samples") as bar:
            for sample in samples.iter_rows(named=True):
                row = _tokenise(sample, template)
                if self._fits(row, sample, quarantine):
                    rows.append(row)
                bar.advance()
        quarantine.write(context.output)
        counts = {**_histogram(rows), **quarantine.counts()}
        roles = Counter(f"role_{row['role']}" for row in rows)
        _LOGGER.info("mixed %s sequences: %s", dict(roles), counts)
        if not rows:
            raise DataError(
                f"stage '{self.config.name}'",
                f"nothing is left of {len(samples)} samples: {quarantine.counts()}.",
                "Raise 'max_tokens', or select other samples.",
            )
        write_table(context.output, Kind.TOKENS, pl.DataFrame(rows))
        return StageResult(len(rows), {**roles, **counts})

    def _read(self, context: StageContext, quarantine: Quarantine) -> pl.DataFrame:
        """All samples with their final roles; held-out problems are set aside, never trained on."""
        parts: list[pl.DataFrame] = []
        for part in self.config.tables:
            filled = () if part.as_role else ("role",)
            samples = read_table(context.inputs[part.table], Kind.SAMPLES, filled=filled)
            if part.as_role:
                samples = samples.with_columns(role=pl.lit(part.as_role))
            parts.append(samples)
        samples = pl.concat(parts)
        for row in samples.filter(pl.col("split") != "train").to_dicts():
            quarantine.add("held-out problem", row)
        train = samples.filter(pl.col("split") == "train")
        both = train.group_by("sample_id").agg(pl.col("role").n_unique()).filter(pl.col("role") > 1)
        if len(both):
            raise DataError(
                f"stage '{self.config.name}'",
                f"{len(both)} samples are to be imitated and suppressed at once, the first with "
                f"sample_id {both['sample_id'][0]}.",
                "Use 'where: correct' for one selection and 'where: wrong' for the other.",
            )
        return train

    def _fits(self, row: dict[str, Any], sample: dict[str, Any], quarantine: Quarantine) -> bool:
        num_tokens, limit = len(row["ids"]), self.config.max_tokens
        if num_tokens <= limit:
            return True
        if self.config.overlong == "refuse":
            raise DataError(
                f"stage '{self.config.name}' sample {row['sample_id']}",
                f"{num_tokens} tokens are more than max_tokens {limit}.",
                "Raise 'max_tokens', set 'overlong: drop', or limit the length in 'select'.",
            )
        quarantine.add("longer than max_tokens", sample, f"{num_tokens} tokens, limit {limit}")
        return False


def _tokenise(sample: dict[str, Any], template: Template) -> dict[str, Any]:
    prompt_ids = template.prompt_ids([Message(**turn) for turn in sample["messages"]])
    finished = sample["finish"] != Finish.LENGTH
    response_ids = template.response_ids(sample["response"], finished=finished)
    return {
        "sample_id": sample["sample_id"],
        "role": sample["role"],
        "ids": [*prompt_ids, *response_ids],
        "num_prompt_tokens": len(prompt_ids),
        "template_hash": template.hash,
    }


def _histogram(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Number of sequences by length, in classes that double."""

    def classes() -> Iterator[int]:
        for row in rows:
            yield 1 << (len(row["ids"]) - 1).bit_length()

    counts = Counter(classes())
    return {f"tokens_up_to_{limit}": counts[limit] for limit in sorted(counts)}
