"""Stage `filter`: sets aside samples that training should not see.

Repeated responses, responses too short or too long, problems that overlap with a benchmark, and
problems that are too easy or too hard for whoever answered them. Not here: choosing among the rest
(`select.py`).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import polars as pl
from pydantic import Field, model_validator

from megatron_reason.curation._entries import RowError, hash64
from megatron_reason.curation._readers import SourceRows
from megatron_reason.curation._texts import TextFlaw, text_objection
from megatron_reason.curation.base import Stage, StageConfig, StageContext, StageResult, stage
from megatron_reason.errors import DataError
from megatron_reason.generation.templates import load_template
from megatron_reason.logs import get_logger
from megatron_reason.schema.tables import (
    Kind,
    Quarantine,
    TableReader,
    TableWriter,
    read_table,
)

_LOGGER = get_logger(__name__)
_WORD = re.compile(r"\w+|[^\w\s]")
_GRAM_WORDS = 5
Gram = tuple[str, ...]


class FilterConfig(StageConfig):
    """Configuration of the stage `filter`."""

    stage: Literal["filter"] = "filter"
    """Kind of stage."""
    table: str
    """Stage whose samples are filtered."""
    min_characters: int = Field(default=1, ge=1)
    """Shortest response kept."""
    max_characters: int | None = Field(default=None, ge=1)
    """Longest response kept; None keeps any."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest response kept, in tokens of the run's model; None keeps any and needs no model."""
    benchmarks: tuple[str, ...] = ()
    """Files of problems (any shape that `ingest` reads) that must not be trained on."""
    max_overlap: float = Field(default=0.6, gt=0, le=1)
    """Jaccard similarity of 5-grams from which a problem counts as one of `benchmarks`."""
    pass_rate: tuple[float, float] | None = None
    """Smallest and largest mean score of a problem's responses; None keeps all problems. RLVR data
    of OXA: [0.2, 0.8] of 8 responses."""
    min_responses: int = Field(default=1, ge=1)
    """Fewest responses a pass rate is taken from; problems with fewer are outside any band."""
    refuse: tuple[TextFlaw, ...] = ()
    """Flaws of a row's text, problem and response together, that are not wanted: `hyperlink`,
    `mixed_languages` (LESE). A Chinese response to an English problem is mixed, too."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.pass_rate is not None and not 0 <= self.pass_rate[0] <= self.pass_rate[1] <= 1:
            raise ValueError("'pass_rate' is [smallest, largest], both between 0 and 1")
        return self

    def inputs(self) -> tuple[str, ...]:
        """The filtered table."""
        return (self.table,)


@stage
class Filter(Stage[FilterConfig]):
    """Keeps the rows no filter objects to, in their order."""

    config_class = FilterConfig

    def run(self, context: StageContext) -> StageResult:
        """Write the kept samples; the others go to the quarantine, each with its first objection.

        Raises:
            DataError: nothing is left, or a benchmark cannot be read.
        """
        config = self.config
        source = TableReader(context.inputs[config.table], Kind.SAMPLES)
        objection = _Objections(config, source, self._count_tokens(context))
        with (
            Quarantine(context.output) as quarantine,
            TableWriter(context.output, Kind.SAMPLES) as writer,
        ):
            for batch in source.batches():
                keep: list[bool] = []
                for row in batch.iter_rows(named=True):
                    reason = objection.to(row)
                    keep.append(reason is None)
                    if reason is not None:
                        quarantine.add(reason, row, place=f"sample {row['sample_id']}")
                writer.append(batch.filter(pl.Series(keep, dtype=pl.Boolean)))
            counts = quarantine.counts()
            _LOGGER.info(
                "%s: kept %d of %d; %s", config.table, writer.num_rows, source.num_rows, counts
            )
            if writer.num_rows == 0:
                raise DataError(
                    f"stage '{config.name}'",
                    f"nothing is left of {source.num_rows} samples: {counts}.",
                    "Loosen the filters.",
                )
        return StageResult(writer.num_rows, counts)

    def _count_tokens(self, context: StageContext) -> Callable[[str], int]:
        if self.config.max_tokens is None:
            return lambda _: 0
        tokenizer = load_template(context.template, context.model_folder).tokenizer
        return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


class _Objections:
    """What speaks against a row. Remembers a few bytes of each row, to know repeated ones.

    Args:
        config: the filters.
        source: the table, read once for what concerns problems as a whole.
        count_tokens: length of a text.
    """

    def __init__(
        self, config: FilterConfig, source: TableReader, count_tokens: Callable[[str], int]
    ) -> None:
        self._config = config
        self._count_tokens = count_tokens
        self._contaminated = _contaminated(config, source)
        self._outside = _outside_pass_rate(config, source)
        self._seen: set[int] = set()

    def to(self, row: Mapping[str, Any]) -> str | None:
        """First objection to a row, or None."""
        config = self._config
        response: str = row["response"]
        key = hash64(row["problem_id"], response)
        if key in self._seen:
            return "duplicate response"
        self._seen.add(key)
        if len(response) < config.min_characters:
            return "shorter than min_characters"
        if config.max_characters is not None and len(response) > config.max_characters:
            return "longer than max_characters"
        if row["problem_id"] in self._contaminated:
            return "benchmark problem"
        if row["problem_id"] in self._outside:
            return "outside pass_rate"
        text = f"{_text_of(row['messages'])}\n{response}" if config.refuse else ""
        if (flaw := text_objection(text, config.refuse)) is not None:
            return flaw
        too_long = (
            config.max_tokens is not None and self._count_tokens(response) > config.max_tokens
        )
        return "longer than max_tokens" if too_long else None


def _outside_pass_rate(config: FilterConfig, source: TableReader) -> set[str]:
    """Problems whose mean score lies outside the band, or is of too few responses."""
    if config.pass_rate is None:
        return set()
    low, high = config.pass_rate
    columns = ("problem_id", "score")
    scores = read_table(source.path, Kind.SAMPLES, filled=("score",), columns=columns)
    rates = scores.group_by("problem_id").agg(pl.col("score").mean(), pl.len())
    tolerance = 1e-9  # 0.2 is a little less than 2 of 10 in floating point
    inside = pl.col("score").is_between(low - tolerance, high + tolerance)
    enough = pl.col("len") >= config.min_responses
    return set(rates.filter(~(inside & enough))["problem_id"])


def _contaminated(config: FilterConfig, source: TableReader) -> set[str]:
    """Identifiers of the problems that overlap with a benchmark."""
    texts = [text for benchmark in config.benchmarks for text in _problem_texts(benchmark)]
    if not texts:
        return set()
    index = OverlapIndex(texts)
    seen: set[str] = set()
    found: set[str] = set()
    for batch in source.batches(columns=("problem_id", "messages")):
        for problem_id, messages in batch.unique("problem_id").iter_rows():
            if problem_id not in seen:
                seen.add(problem_id)
                if index.overlap(_text_of(messages)) >= config.max_overlap:
                    found.add(problem_id)
    return found


class OverlapIndex:
    """Answers how much of a text is a text of a collection, by 5-grams of words and marks.

    Args:
        texts: the collection.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._sizes: list[int] = []
        self._holders: defaultdict[Gram, list[int]] = defaultdict(list)
        for index, text in enumerate(texts):
            grams = _grams(text)
            self._sizes.append(len(grams))
            for gram in grams:
                self._holders[gram].append(index)

    def overlap(self, text: str) -> float:
        """Largest Jaccard similarity of the 5-grams of `text` with those of one of the texts."""
        grams = _grams(text)
        shared = Counter(index for gram in grams for index in self._holders.get(gram, ()))
        return max(
            (count / (len(grams) + self._sizes[i] - count) for i, count in shared.items()),
            default=0.0,
        )


def _grams(text: str) -> set[Gram]:
    words = _WORD.findall(text.lower())
    last = max(len(words) - _GRAM_WORDS, 0)
    return {tuple(words[start : start + _GRAM_WORDS]) for start in range(last + 1)}


def _problem_texts(source: str) -> list[str]:
    texts: list[str] = []
    rows = SourceRows(source)
    for place, row in rows:
        if isinstance(row, RowError):
            raise DataError(place, f"{row.reason}: {row.detail}.", "Mend the file.")
        try:
            entry = rows.shape.read(row, source)
        except (RowError, KeyError) as error:
            raise DataError(
                place, f"a row of this benchmark cannot be read: {error}.", "Mend the file."
            ) from error
        texts.append("\n".join(turn.content for turn in entry.problem.messages))
    return texts


def _text_of(messages: Sequence[dict[str, str]]) -> str:
    return "\n".join(turn["content"] for turn in messages)
