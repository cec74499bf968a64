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
from megatron_reason.schema.tables import (
    Kind,
    Quarantine,
    TableReader,
    TableWriter,
    read_table,
)

_LOGGER = get_logger(__name__)
_TOKEN_TYPES = {
    "sample_id": pl.String,
    "problem_id": pl.String,
    "role": pl.String,
    "ids": pl.List(pl.Int32),
    "num_prompt_tokens": pl.Int32,
    "template_hash": pl.String,
}


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
        sources = [TableReader(context.inputs[p.table], Kind.SAMPLES) for p in self.config.tables]
        self._check_roles(sources)
        roles, lengths = Counter[str](), Counter[int]()
        num_samples = sum(source.num_rows for source in sources)
        with (
            Quarantine(context.output) as quarantine,
            TableWriter(context.output, Kind.TOKENS) as writer,
            progress("tokenise", num_samples, "samples") as bar,
        ):
            for batch in self._batches(sources, quarantine):
                rows = self._tokenised(batch, template, quarantine)
                writer.append(pl.DataFrame(rows, schema=_TOKEN_TYPES))
                roles.update(f"role_{row['role']}" for row in rows)
                lengths.update(1 << (len(row["ids"]) - 1).bit_length() for row in rows)
                bar.advance(len(batch))
            if writer.num_rows == 0:
                raise DataError(
                    f"stage '{self.config.name}'",
                    f"nothing is left of {num_samples} samples: {quarantine.counts()}.",
                    "Raise 'max_tokens', or select other samples.",
                )
        # Number of sequences by length, in classes that double.
        histogram = {f"tokens_up_to_{limit}": lengths[limit] for limit in sorted(lengths)}
        counts = {**histogram, **quarantine.counts()}
        _LOGGER.info("mixed %s sequences: %s", dict(roles), counts)
        return StageResult(writer.num_rows, {**roles, **counts})

    def _check_roles(self, sources: Sequence[TableReader]) -> None:
        """Refuse samples without a role, and samples in two."""
        parts: list[pl.DataFrame] = []
        for part, source in zip(self.config.tables, sources, strict=True):
            filled = () if part.as_role else ("role",)
            rows = read_table(
                source.path, Kind.SAMPLES, filled=filled, columns=("sample_id", "split", "role")
            )
            parts.append(rows.with_columns(role=pl.lit(part.as_role)) if part.as_role else rows)
        train = pl.concat(parts).filter(pl.col("split") == "train")
        both = train.group_by("sample_id").agg(pl.col("role").n_unique()).filter(pl.col("role") > 1)
        if len(both):
            raise DataError(
                f"stage '{self.config.name}'",
                f"{len(both)} samples are to be imitated and suppressed at once, the first with "
                f"sample_id {both['sample_id'][0]}.",
                "Use 'where: correct' for one selection and 'where: wrong' for the other.",
            )

    def _batches(
        self, sources: Sequence[TableReader], quarantine: Quarantine
    ) -> Iterator[pl.DataFrame]:
        """All samples with their final roles; held-out problems are set aside, never trained on."""
        for part, source in zip(self.config.tables, sources, strict=True):
            for batch in source.batches():
                rows = batch.with_columns(role=pl.lit(part.as_role)) if part.as_role else batch
                for row in rows.filter(pl.col("split") != "train").iter_rows(named=True):
                    place = f"{part.table} sample {row['sample_id']}"
                    quarantine.add("held-out problem", row, place=place)
                yield rows.filter(pl.col("split") == "train")

    def _tokenised(
        self, batch: pl.DataFrame, template: Template, quarantine: Quarantine
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for sample in batch.iter_rows(named=True):
            if not sample["response"].strip():
                quarantine.add("empty response", sample, place=sample["sample_id"])
                continue
            row = _tokenise(sample, template)
            if self._fits(row, sample, quarantine):
                rows.append(row)
        return rows

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
        detail = f"{num_tokens} tokens, limit {limit}"
        quarantine.add("longer than max_tokens", sample, detail, place=sample["sample_id"])
        return False


def _tokenise(sample: dict[str, Any], template: Template) -> dict[str, Any]:
    prompt_ids = template.prompt_ids([Message(**turn) for turn in sample["messages"]])
    finished = sample["finish"] != Finish.LENGTH
    response_ids = template.response_ids(sample["response"], finished=finished)
    return {
        "sample_id": sample["sample_id"],
        "problem_id": sample["problem_id"],
        "role": sample["role"],
        "ids": [*prompt_ids, *response_ids],
        "num_prompt_tokens": len(prompt_ids),
        "template_hash": template.hash,
    }
