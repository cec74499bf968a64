"""Stage `ingest`: brings problems and their teacher's responses into the run.

Writes two tables: `problems` (all, with their split) and `samples` (the responses to the problems
of the train split). Held-out problems are chosen by whole families, so that nothing trained on
shares a template with anything measured. Not here: file shapes (`_readers.py`), generated problems
and their renderings (`_reasoning_gym.py`), verdicts (`grade.py`).
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from megatron_reason.curation._entries import Entry, RowError
from megatron_reason.curation._readers import detect_shape, read_file_rows
from megatron_reason.curation._reasoning_gym import read_reasoning_gym
from megatron_reason.curation.base import Stage, StageConfig, StageContext, StageResult, stage
from megatron_reason.errors import DataError
from megatron_reason.logs import get_logger
from megatron_reason.schema.records import Finish, Origin, Problem, Sample
from megatron_reason.schema.tables import Kind, Quarantine, write_table

_LOGGER = get_logger(__name__)
_GYM = "reasoning_gym:"
_GYM_SIZE = 500


class IngestConfig(StageConfig):
    """Configuration of the stage `ingest`."""

    stage: Literal["ingest"] = "ingest"
    """Kind of stage."""
    source: str
    """`reasoning_gym:NAME`, a .jsonl, .json or .parquet file, or an `hf://datasets/...` parquet."""
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


@stage
class Ingest(Stage[IngestConfig]):
    """Reads a source, sets bad rows aside, splits, and writes problems and samples."""

    config_class = IngestConfig

    def run(self, context: StageContext) -> StageResult:
        """Write `problems.parquet` and `samples.parquet`.

        Raises:
            DataError: an unreadable source, unknown columns, no usable row, or a held-out fraction
                that leaves one side of the split empty.
        """
        config = self.config
        seed = context.seed if config.seed is None else config.seed
        quarantine = Quarantine.empty()
        collected = _Collected(config.solutions_per_problem, quarantine)
        for entry in self._entries(seed, quarantine):
            collected.add(entry)
        problems = _split(list(collected.problems.values()), config, seed)
        quarantine.write(context.output)
        if not problems:
            raise DataError(
                config.source,
                f"no usable row: {dict(quarantine.counts()) or 'the source is empty'}.",
                f"Look into {context.output}/quarantine.parquet.",
            )
        samples = _samples(problems, collected, Origin(config.origin))
        write_table(context.output, Kind.PROBLEMS, problems)
        write_table(context.output, Kind.SAMPLES, samples)
        splits = Counter(problem.split for problem in problems)
        _LOGGER.info(
            "%s: %d train and %d held-out problems, %d responses, refused %s",
            config.source, splits["train"], splits["heldout"], len(samples), quarantine.counts(),
        )  # fmt: skip
        return StageResult(
            len(samples),
            {
                "problems_train": splits["train"],
                "problems_heldout": splits["heldout"],
                "beyond_solutions_per_problem": collected.num_beyond,
                **quarantine.counts(),
            },
        )

    def _entries(self, seed: int, quarantine: Quarantine) -> Iterable[Entry]:
        config = self.config
        if config.source.startswith(_GYM):
            yield from read_reasoning_gym(
                config.source.removeprefix(_GYM),
                size=config.size or _GYM_SIZE,
                seed=seed,
                solutions_per_problem=config.solutions_per_problem,
            )
            return
        rows, broken = read_file_rows(config.source)
        for line in broken:
            quarantine.add("not a JSON object", line)
        shape = detect_shape(rows, config.source)
        name = Path(config.source).stem
        _LOGGER.info("%s: %d rows of shape '%s'", config.source, len(rows), shape.name)
        for row in rows[: config.size]:
            if missing := [column for column in shape.columns if row.get(column) is None]:
                quarantine.add("missing columns", row, ", ".join(missing))
                continue
            try:
                yield shape.read(row, name)
            except RowError as error:
                quarantine.add(error.reason, row, error.detail)


@dataclass
class _Collected:
    """Distinct problems in order, and the distinct responses to each."""

    max_responses: int
    quarantine: Quarantine
    problems: dict[str, Problem] = field(default_factory=dict[str, Problem])
    responses: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    """By problem id: text -> generator."""
    num_beyond: int = 0
    """Responses left out because their problem had enough."""
    _row_ids: set[str] = field(default_factory=set[str])

    def add(self, entry: Entry) -> None:
        """Take an entry in, or the parts of it that are new and not empty."""
        problem_id = entry.problem.problem_id
        if entry.row_id:
            if entry.row_id in self._row_ids:
                self.quarantine.add("duplicate id", entry, entry.row_id)
                return
            self._row_ids.add(entry.row_id)
        if problem_id in self.problems and not entry.responses:
            self.quarantine.add("duplicate problem", entry)
            return
        known = self.responses.setdefault(problem_id, {})
        self.problems.setdefault(problem_id, entry.problem)
        for response in entry.responses:
            if not response.text.strip():
                self.quarantine.add("empty response", entry)
            elif response.text in known:
                self.quarantine.add("duplicate response", entry)
            elif len(known) >= self.max_responses:
                self.num_beyond += 1
            else:
                known[response.text] = response.generator


def _split(problems: Sequence[Problem], config: IngestConfig, seed: int) -> list[Problem]:
    """Mark whole families as held out, besides the problems that came marked."""
    if config.heldout_fraction == 0 or not problems:
        return list(problems)
    families = sorted({_family(problem) for problem in problems if problem.split == "train"})
    num_heldout = round(config.heldout_fraction * len(families))
    if not 0 < num_heldout < len(families):
        raise DataError(
            config.source,
            f"a held-out fraction of {config.heldout_fraction} of {len(families)} families holds "
            f"out {num_heldout} of them.",
            "Change 'heldout_fraction', or take more problems.",
        )
    heldout = set(random.Random(seed).sample(families, num_heldout))
    return [
        replace(problem, split="heldout") if _family(problem) in heldout else problem
        for problem in problems
    ]


def _family(problem: Problem) -> str:
    return problem.family or problem.problem_id


def _samples(problems: Sequence[Problem], collected: _Collected, origin: Origin) -> list[Sample]:
    return [
        Sample.of(
            problem, text, finish=Finish.GIVEN, origin=origin, generator=generator, index=index
        )
        for problem in problems
        if problem.split == "train"
        for index, (text, generator) in enumerate(collected.responses[problem.problem_id].items())
    ]
