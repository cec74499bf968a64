"""Stage `ingest`: brings problems and their teacher's responses into the run.

Writes two tables: `problems` (all, with their split) and `samples` (the responses to the problems
of the train split). Held-out problems are chosen by whole families, so that nothing trained on
shares a template with anything measured. Not here: file shapes (`_readers.py`), generated problems
and their renderings (`_reasoning_gym.py`), verdicts (`grade.py`).
"""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydantic import Field

from megatron_reason.curation._entries import (
    Entry,
    FirstAnswers,
    GivenResponse,
    RowError,
    hash64,
)
from megatron_reason.curation._reasoning_gym import read_reasoning_gym
from megatron_reason.curation.base import Stage, StageConfig, StageContext, StageResult, stage
from megatron_reason.curation.datasets.base import open_source
from megatron_reason.errors import DataError
from megatron_reason.logs import get_logger
from megatron_reason.schema.records import Finish, Origin, Problem, Sample
from megatron_reason.schema.tables import BATCH_BYTES, Kind, Quarantine, TableWriter

_LOGGER = get_logger(__name__)
_GYM = "reasoning_gym:"
_GYM_SIZE = 500
_MOST_WAITING = 10_000


class IngestConfig(StageConfig):
    """Configuration of the stage `ingest`."""

    stage: Literal["ingest"] = "ingest"
    """Kind of stage."""
    source: str
    """`reasoning_gym:NAME`; a .jsonl, .json, .parquet or .arrow file, or a folder of such; or an
    address on the hub, `hf://datasets/OWNER/NAME/...`, in which `*` stands for any characters."""
    dataset: str | None = None
    """Public data set the source is a copy of, which knows its columns and filters; None goes by
    the columns. With `source: hub` it is read from the hub."""
    size: int | None = Field(default=None, ge=1)
    """Rows taken, from the start of a file; None takes the whole file, or 500 of reasoning-gym."""
    seed: int | None = None
    """Seed of generated problems and of the held-out split; None takes the run's."""
    solutions_per_problem: int = Field(default=4, ge=1)
    """Most responses kept for one problem."""
    heldout_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the families (of the problems, where a source has no families) that is held out."""
    origin: Literal["teacher", "expert"] = "teacher"
    """Who wrote the responses."""
    max_characters: int = Field(default=1_000_000, ge=1)
    """Longest text of a row; rows with longer ones are set aside."""


@stage
class Ingest(Stage[IngestConfig]):
    """Reads a source, sets bad rows aside, splits, and writes problems and samples."""

    config_class = IngestConfig

    def run(self, context: StageContext) -> StageResult:
        """Write `problems.parquet` and `samples.parquet`, reading the source row by row.

        Raises:
            DataError: an unreadable source, unknown columns, no usable row, or a held-out fraction
                that leaves one side of the split empty.
        """
        config = self.config
        seed = context.seed if config.seed is None else config.seed
        heldout = self._heldout_families(seed)
        splits = Counter[str]()
        with (
            Quarantine(context.output) as quarantine,
            _Tables(context.output) as tables,
        ):
            admitted = _Admission(config, quarantine)
            for place, entry in self._entries(seed, quarantine):
                problem = entry.problem
                if problem.split == "train" and _family(problem) in heldout:
                    problem = replace(problem, split="heldout")
                is_new, responses = admitted.of(entry, place)
                if is_new:
                    splits[problem.split] += 1
                    tables.add_problem(problem)
                if problem.split == "train":
                    for index, response in responses:
                        tables.add_sample(_sample(problem, response, index, config.origin))
            if not splits:
                raise DataError(
                    config.source,
                    f"no usable row: {dict(quarantine.counts()) or 'the source is empty'}.",
                    f"Look into {context.output}/quarantine.parquet.",
                )
        num_samples = tables.num_samples
        _LOGGER.info(
            "%s: %d train and %d held-out problems, %d responses, refused %s",
            config.source, splits["train"], splits["heldout"], num_samples, quarantine.counts(),
        )  # fmt: skip
        return StageResult(
            num_samples,
            {
                "problems_train": splits["train"],
                "problems_heldout": splits["heldout"],
                "beyond_solutions_per_problem": admitted.num_beyond,
                **quarantine.counts(),
            },
        )

    def _entries(
        self, seed: int, quarantine: Quarantine | None = None
    ) -> Iterator[tuple[str, Entry]]:
        """Entries of the source with their places; rows that are none go to `quarantine`."""
        config = self.config
        if config.source.startswith(_GYM):
            entries = read_reasoning_gym(
                config.source.removeprefix(_GYM),
                size=config.size or _GYM_SIZE,
                seed=seed,
                solutions_per_problem=config.solutions_per_problem,
            )
            yield from ((f"number {number}", entry) for number, entry in enumerate(entries))
            return
        rows = open_source(config.source, config.dataset)
        name = config.dataset or Path(config.source).stem
        for place, row in islice(rows, config.size):
            try:
                if isinstance(row, RowError):
                    raise row
                if missing := [c for c in rows.shape.columns if row.get(c) is None]:
                    raise RowError("missing columns", ", ".join(missing))
                entry = rows.shape.read(row, name)
                _check_texts(entry, config.max_characters)
            except RowError as error:
                if quarantine is not None:
                    quarantine.add(error.reason, row, error.detail, place=place)
            else:
                yield place, entry

    def _heldout_families(self, seed: int) -> frozenset[str]:
        """Families to hold out, besides the problems that came marked; reads the source for it."""
        config = self.config
        if config.heldout_fraction == 0:
            return frozenset()
        families = sorted(
            {_family(e.problem) for _, e in self._entries(seed) if e.problem.split == "train"}
        )
        num_heldout = round(config.heldout_fraction * len(families))
        if not 0 < num_heldout < len(families):
            raise DataError(
                config.source,
                f"a held-out fraction of {config.heldout_fraction} of {len(families)} families "
                f"holds out {num_heldout} of them.",
                "Change 'heldout_fraction', or take more problems.",
            )
        return frozenset(random.Random(seed).sample(families, num_heldout))


class _Admission:
    """Which parts of an entry are new and usable. Keeps a few bytes of each, not the texts."""

    def __init__(self, config: IngestConfig, quarantine: Quarantine) -> None:
        self.num_beyond = 0
        """Responses left out because their problem had enough."""
        self._max_responses = config.solutions_per_problem
        self._quarantine = quarantine
        self._num_responses: dict[int, int] = {}
        self._answers = FirstAnswers()
        self._responses: set[int] = set()
        self._row_ids: set[int] = set()

    def of(self, entry: Entry, place: str) -> tuple[bool, list[tuple[int, GivenResponse]]]:
        """Whether the entry's problem is new, and its new responses, numbered within it."""
        refuse = partial(self._quarantine.add, row=entry, place=place)
        if entry.row_id:
            if (row_id := hash64(entry.row_id)) in self._row_ids:
                refuse("duplicate id", detail=entry.row_id)
                return False, []
            self._row_ids.add(row_id)
        problem = entry.problem
        question = (turn.content for turn in problem.messages)
        if self._answers.contradict(question, problem.answer):
            refuse("contradictory answer", detail=f"answer {problem.answer!r} is not the first")
            return False, []
        key = hash64(problem.problem_id)
        is_new = key not in self._num_responses
        if not is_new and not entry.responses:
            refuse("duplicate problem")
            return False, []
        self._num_responses.setdefault(key, 0)
        kept: list[tuple[int, GivenResponse]] = []
        for response in entry.responses:
            response_key = hash64(problem.problem_id, response.text)
            if not response.text.strip():
                refuse("empty response")
            elif response_key in self._responses:
                refuse("duplicate response")
            elif self._num_responses[key] >= self._max_responses:
                self.num_beyond += 1
            else:
                self._responses.add(response_key)
                kept.append((self._num_responses[key], response))
                self._num_responses[key] += 1
        return is_new, kept


class _Tables:
    """The two tables being written, with a batch of rows of each in memory."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._problems = TableWriter(folder, Kind.PROBLEMS)
        self._samples = TableWriter(folder, Kind.SAMPLES)
        self._new_problems: list[Problem] = []
        self._new_samples: list[Sample] = []
        self._characters = 0

    def __enter__(self) -> Self:
        self._stack.enter_context(self._problems)
        self._stack.enter_context(self._samples)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._flush()
        self._stack.__exit__(kind, error, trace)

    @property
    def num_samples(self) -> int:
        """Samples added."""
        return self._samples.num_rows + len(self._new_samples)

    def add_problem(self, problem: Problem) -> None:
        """A further problem."""
        self._new_problems.append(problem)

    def add_sample(self, sample: Sample) -> None:
        """A further sample."""
        self._new_samples.append(sample)
        self._characters += len(sample.response)
        if self._characters > BATCH_BYTES or len(self._new_samples) >= _MOST_WAITING:
            self._flush()

    def _flush(self) -> None:
        self._problems.append(self._new_problems)
        self._samples.append(self._new_samples)
        self._new_problems, self._new_samples, self._characters = [], [], 0


def _check_texts(entry: Entry, max_characters: int) -> None:
    texts = [turn.content for turn in entry.problem.messages]
    texts += [entry.problem.answer, *(response.text for response in entry.responses)]
    if (longest := max(map(len, texts))) > max_characters:
        raise RowError("longer than max_characters", f"{longest} characters")
    hash64(*texts)  # refuses what is not Unicode


def _sample(
    problem: Problem, response: GivenResponse, index: int, origin: Literal["teacher", "expert"]
) -> Sample:
    return Sample.of(
        problem,
        response.text,
        finish=Finish.GIVEN,
        origin=Origin(origin),
        generator=response.generator,
        index=index,
    )


def _family(problem: Problem) -> str:
    return problem.family or problem.problem_id
