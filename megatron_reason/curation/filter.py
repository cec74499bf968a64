"""Stage `filter`: sets aside samples that training should not see.

Repeated responses, responses too short or too long, problems that overlap with a benchmark, and
problems that are too easy or too hard for whoever answered them. Not here: choosing among the rest
(`select.py`).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal, Self

import polars as pl
from pydantic import Field, model_validator

from megatron_reason.curation._entries import RowError
from megatron_reason.curation._readers import detect_shape, read_file_rows
from megatron_reason.curation.base import Stage, StageConfig, StageContext, StageResult, stage
from megatron_reason.errors import DataError
from megatron_reason.logs import get_logger
from megatron_reason.schema.tables import Kind, Quarantine, read_table, write_table

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
    benchmarks: tuple[str, ...] = ()
    """Files of problems (any shape that `ingest` reads) that must not be trained on."""
    max_overlap: float = Field(default=0.6, gt=0, le=1)
    """Jaccard similarity of 5-grams from which a problem counts as one of `benchmarks`."""
    pass_rate: tuple[float, float] | None = None
    """Smallest and largest mean score of a problem's responses; None keeps all problems."""

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
        filled = ("score",) if config.pass_rate else ()
        samples = read_table(context.inputs[config.table], Kind.SAMPLES, filled=filled)
        quarantine = Quarantine.empty()
        objections = self._objections(samples)
        for row, objection in zip(samples.iter_rows(named=True), objections, strict=True):
            if objection is not None:
                quarantine.add(objection, row)
        quarantine.write(context.output)
        kept = samples.filter(
            pl.Series([objection is None for objection in objections], dtype=pl.Boolean)
        )
        _LOGGER.info(
            "%s: kept %d of %d; %s", config.table, len(kept), len(samples), quarantine.counts()
        )
        if kept.is_empty():
            raise DataError(
                f"stage '{config.name}'",
                f"nothing is left of {len(samples)} samples: {quarantine.counts()}.",
                "Loosen the filters.",
            )
        write_table(context.output, Kind.SAMPLES, kept)
        return StageResult(len(kept), quarantine.counts())

    def _objections(self, samples: pl.DataFrame) -> list[str | None]:
        config = self.config
        contaminated = self._contaminated(samples)
        pass_rates: dict[str, float] = dict(
            samples.group_by("problem_id").agg(pl.col("score").mean()).iter_rows()
        )
        seen: set[tuple[str, str]] = set()

        def objection(problem_id: str, response: str) -> str | None:
            repeated = (problem_id, response) in seen
            seen.add((problem_id, response))
            if repeated:
                return "duplicate response"
            if len(response) < config.min_characters:
                return "shorter than min_characters"
            if config.max_characters is not None and len(response) > config.max_characters:
                return "longer than max_characters"
            if problem_id in contaminated:
                return "benchmark problem"
            if config.pass_rate is not None:
                low, high = config.pass_rate
                if not low <= pass_rates[problem_id] <= high:
                    return "outside pass_rate"
            return None

        return [objection(*row) for row in samples.select("problem_id", "response").iter_rows()]

    def _contaminated(self, samples: pl.DataFrame) -> set[str]:
        """Identifiers of the problems that overlap with a benchmark."""
        texts = [text for source in self.config.benchmarks for text in _problem_texts(source)]
        if not texts:
            return set()
        index = OverlapIndex(texts)
        problems = samples.unique("problem_id").select("problem_id", "messages")
        return {
            problem_id
            for problem_id, messages in problems.iter_rows()
            if index.overlap(_user_text(messages)) >= self.config.max_overlap
        }


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
    rows, broken = read_file_rows(source)
    shape = detect_shape(rows, source)
    texts: list[str] = []
    try:
        for row in rows:
            entry = shape.read(row, source)
            texts.append("\n".join(turn.content for turn in entry.problem.messages))
    except (RowError, KeyError) as error:
        raise DataError(
            source, f"a row of this benchmark cannot be read: {error}.", "Mend the file."
        ) from error
    if broken:
        raise DataError(source, f"{len(broken)} lines are no JSON objects.", "Mend the file.")
    return texts


def _user_text(messages: Sequence[dict[str, str]]) -> str:
    return "\n".join(turn["content"] for turn in messages)
