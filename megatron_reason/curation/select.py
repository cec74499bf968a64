"""Stage `select`: the responses that training will imitate or suppress.

Eligible rows are those with the right verdict, a finite perplexity and an acceptable length; a rule
picks from them, seeing their numbers only; a second pass copies the rows it took. Beside the table
stands `selection.json`, with the rule and, for rules that aim at a distribution, its bins. Not
here: the rules themselves (`_rules.py`, `_gaussian.py`).
"""

from dataclasses import dataclass
from typing import Literal, Self

import polars as pl
from pydantic import Field, model_validator

from megatron_reason.curation._gaussian import select_gaussian
from megatron_reason.curation._rows import rows_at
from megatron_reason.curation._rules import Choice, RandomRule, Rule, Wanted
from megatron_reason.curation.base import Stage, StageConfig, StageContext, StageResult, stage
from megatron_reason.errors import DataError
from megatron_reason.files import write_json
from megatron_reason.logs import get_logger
from megatron_reason.rewards.base import FAILED_STATUSES
from megatron_reason.schema.records import Status
from megatron_reason.schema.tables import (
    Kind,
    Quarantine,
    TableReader,
    TableWriter,
    read_table,
)

__all__ = ["Select", "SelectConfig", "select_gaussian"]

SELECTION = "selection.json"

_LOGGER = get_logger(__name__)
_COLUMNS = ("sample_id", "problem_id", "status", "ppl", "num_tokens", "scorer")
"""All that selecting needs of a row; texts are read only of the rows taken."""
_UNNAMED = "(a scorer that the table does not name)"
_ELIGIBLE: dict[str, tuple[Status, ...]] = {"correct": (Status.OK,), "wrong": FAILED_STATUSES}


class SelectConfig(StageConfig):
    """Configuration of the stage `select`."""

    stage: Literal["select"] = "select"
    """Kind of stage."""
    table: str
    """Stage whose samples are selected from."""
    role: Literal["demo", "negative"]
    """What training is to do with the selected responses."""
    count: int = Field(..., ge=1)
    """Responses wanted."""
    per_problem: int = Field(default=1, ge=1)
    """Most responses to one problem."""
    where: Literal["correct", "wrong", "any"]
    """Verdict that makes a response eligible; `wrong` means known to be wrong."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest eligible response, in scored tokens."""
    min_tokens: int | None = Field(default=None, ge=1)
    """Shortest eligible response, in scored tokens; 10,000 with the rule `lowest` is OXA's low-PPL
    and long ablation."""
    rule: Rule
    """Which of the eligible responses are taken."""
    seed: int | None = None
    """Seed of ties and order; None takes the run's."""
    prefix: str = ""
    """Put before the responses taken that do not begin with it; scores and ids stay as they are.
    OXA's released suppression data has `<think>` put before the model's own wrong answers."""
    scorer: str | None = None
    """What the perplexities must come from, as the column `scorer` names it; None takes any one."""
    allow_shortage: bool = False
    """Go on with fewer responses than the rule aims at: `count`, or the sum of its bins' targets.
    The shortage is then a count of the result."""

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.max_tokens is not None and (self.min_tokens or 0) > self.max_tokens:
            raise ValueError("'min_tokens' is more than 'max_tokens'")
        return self

    def inputs(self) -> tuple[str, ...]:
        """The table selected from."""
        return (self.table,)


@dataclass(frozen=True)
class _Eligible:
    """Rows a rule may choose from, and how many were not eligible for which reason."""

    rows: pl.DataFrame
    refused: dict[str, int]


@stage
class Select(Stage[SelectConfig]):
    """Filters, applies the rule, and gives the chosen rows their role."""

    config_class = SelectConfig

    def run(self, context: StageContext) -> StageResult:
        """Write the selected samples.

        Raises:
            DataError: fewer rows than aimed at, unless `allow_shortage` is set; no row at all.
            SchemaError: rows without the verdict or perplexity that the configuration asks for.
        """
        config = self.config
        source = TableReader(context.inputs[config.table], Kind.SAMPLES)
        columns = read_table(source.path, Kind.SAMPLES, filled=self._needed(), columns=_COLUMNS)
        self._check_scorer(columns)
        samples = columns.with_row_index("row")
        with Quarantine(context.output) as quarantine:
            eligible = self._eligible(samples, quarantine)
        seed = context.seed if config.seed is None else config.seed
        candidates = eligible.rows.with_columns(
            query_id=pl.col("problem_id").cast(pl.Categorical).to_physical(),
            response_id="sample_id",
            token_len="num_tokens",
        )
        choice = config.rule.choose(candidates, Wanted(config.count, config.per_problem, seed))
        num_taken = len(choice.rows)
        counts = {
            "candidates": len(candidates),
            "shortage": choice.aim(config.count) - num_taken,
            "repeated": num_taken - choice.rows["row"].n_unique(),
            **eligible.refused,
        }
        _LOGGER.info("%s -> %s: took %d; %s", config.table, config.name, num_taken, counts)
        self._check_shortage(choice, candidates)
        role = pl.lit(config.role)
        with TableWriter(context.output, Kind.SAMPLES) as writer:
            for batch in rows_at(source, choice.rows["row"].to_numpy(), context.output):
                writer.append(batch.with_columns(role=role, response=_begun(config.prefix)))
        write_json(
            context.output / SELECTION,
            {
                "rule": config.rule.model_dump(),
                "role": config.role,
                "wanted": config.count,
                "num_taken": num_taken,
                "counts": counts,
                "edges": choice.edges,
                "target": choice.targets,
                "available": choice.available,
                "taken": choice.taken,
            },
        )
        return StageResult(num_taken, counts)

    def _check_scorer(self, columns: pl.DataFrame) -> None:
        """Refuse perplexities of several models, or of another one than is to be trained."""
        if isinstance(self.config.rule, RandomRule):
            return
        scorers = columns["scorer"].fill_null(_UNNAMED).unique().sort().to_list()
        if len(scorers) > 1:
            raise DataError(
                f"stage '{self.config.name}'",
                f"'{self.config.table}' holds perplexities that cannot be compared, by "
                f"{', '.join(scorers)}.",
                "Score all rows with one model, context and template.",
            )
        wanted = self.config.scorer
        if wanted is not None and scorers and scorers[0] != wanted:
            raise DataError(
                f"stage '{self.config.name}'",
                f"the perplexities of '{self.config.table}' are by {scorers[0]}, not {wanted}.",
                "Score the table again, or correct 'scorer'.",
            )

    def _needed(self) -> tuple[str, ...]:
        config = self.config
        needed: list[str] = []
        if config.where != "any":
            needed.append("status")
        if not isinstance(config.rule, RandomRule):
            needed += ["ppl", "num_tokens"]
        elif config.max_tokens is not None or config.min_tokens is not None:
            needed.append("num_tokens")
        return tuple(needed)

    def _eligible(self, samples: pl.DataFrame, quarantine: Quarantine) -> _Eligible:
        config = self.config
        rows = samples
        refused: dict[str, int] = {}
        if config.where != "any":
            statuses = [str(status) for status in _ELIGIBLE[config.where]]
            rows = rows.filter(pl.col("status").is_in(statuses))
            refused[f"not_{config.where}"] = len(samples) - len(rows)
        if not isinstance(config.rule, RandomRule):
            finite = pl.col("ppl").is_finite()
            for row in rows.filter(~finite).iter_rows(named=True):
                place = f"row {row['row']}"
                quarantine.add("perplexity is not finite", row, str(row["ppl"]), place=place)
            refused |= quarantine.counts()
            rows = rows.filter(finite)
        if config.max_tokens is not None:
            short = rows.filter(pl.col("num_tokens") <= config.max_tokens)
            refused["longer_than_max_tokens"] = len(rows) - len(short)
            rows = short
        if config.min_tokens is not None:
            long = rows.filter(pl.col("num_tokens") >= config.min_tokens)
            refused["shorter_than_min_tokens"] = len(rows) - len(long)
            rows = long
        return _Eligible(rows, refused)

    def _check_shortage(self, choice: Choice, candidates: pl.DataFrame) -> None:
        config = self.config
        aim = choice.aim(config.count)
        shortage = aim - len(choice.rows)
        if len(choice.rows) > 0 and (shortage <= 0 or config.allow_shortage):
            return
        short_bins = [
            f"{low:.2f}-{high:.2f}: {taken} of {target}"
            for low, high, target, taken in zip(
                choice.edges, choice.edges[1:], choice.targets, choice.taken, strict=False
            )
            if taken < target
        ]
        by_bin = f" Short bins: {', '.join(short_bins)}." if short_bins else ""
        raise DataError(
            f"stage '{config.name}'",
            f"rule '{config.rule.name}' found {len(choice.rows)} of {aim} responses "
            f"({shortage} short) among {len(candidates)} eligible ones of "
            f"'{config.table}'.{_perplexities(candidates)}{by_bin}",
            _way_out(choice),
        )


def _begun(prefix: str) -> pl.Expr:
    """The responses, each beginning with `prefix`; empty ones stay so, for `mix` to set aside."""
    response = pl.col("response")
    lacks_it = response.str.contains(r"\S") & ~response.str.starts_with(prefix)
    return pl.when(lacks_it).then(prefix + response).otherwise(response)


def _perplexities(candidates: pl.DataFrame) -> str:
    ppl = candidates["ppl"].drop_nulls()
    if ppl.is_empty():
        return ""
    low, middle, high = (ppl.quantile(share) for share in (0.1, 0.5, 0.9))
    return f" Their perplexities: median {middle:.2f}, 80 % between {low:.2f} and {high:.2f}."


def _way_out(choice: Choice) -> str:
    if choice.rows.is_empty():
        return "Loosen 'where', 'max_tokens', 'min_tokens' or the rule, or bring more samples in."
    return (
        "Lower 'count', widen the rule (gaussian: 'std', 'bin_width', or a 'mean' nearer to the "
        "data), or set 'allow_shortage: true' to train on fewer."
    )
