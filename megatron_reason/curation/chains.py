r"""Stage `chains`: made-up chains of sums with their worked steps, for experiments without data.

A problem is "7+5-3+8=", its solution "<think>7+5=12\n12-3=9\n9+8=17\n</think>" and the answer in a
box, inside answer tags. A solution may be written in other ways, each with a share of the problems,
so that a model finds some likelier than others. No intermediate result is negative. How long a
chain is, is its `family`; the way is in the column `generator`. Not here: data worth publishing on.
"""

import random
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Literal

from pydantic import Field

from megatron_reason.curation.base import Stage, StageConfig, StageContext, StageResult, stage
from megatron_reason.errors import DataError
from megatron_reason.schema.records import Finish, Message, Origin, Problem, Sample
from megatron_reason.schema.tables import Kind, read_table, write_table

_MOST_TRIES = 100

Style = Literal["steps", "totals", "gathered", "answer"]
"""`steps`: every sum in full; `totals`: its result alone; `gathered`: every sum in full, what is
added before what is taken away; `answer`: no sums at all."""


class ChainsConfig(StageConfig):
    """Configuration of the stage `chains`."""

    stage: Literal["chains"] = "chains"
    """Kind of stage."""
    size: int = Field(default=1000, ge=1)
    """Problems of the train split."""
    heldout: int = Field(default=0, ge=0)
    """Problems held out; none of them is in the train split."""
    fewest_steps: int = Field(default=2, ge=1)
    """Sums of the shortest chain."""
    most_steps: int = Field(default=4, ge=1)
    """Sums of the longest chain."""
    largest: int = Field(default=9, ge=1)
    """Largest number added or taken away."""
    styles: dict[Style, Annotated[float, Field(gt=0)]] = Field(
        default_factory=lambda: {"steps": 1.0}, min_length=1
    )
    """Ways in which solutions are written, and the weight of each in the draw; one a problem."""
    unlike: str | None = None
    """Earlier stage whose problems do not occur here; None excludes none."""
    seed: int | None = None
    """Seed of the problems; None takes the run's."""

    def inputs(self) -> tuple[str, ...]:
        """The stage whose problems are left out."""
        return () if self.unlike is None else (self.unlike,)


@stage
class Chains(Stage[ChainsConfig]):
    """Writes problems and, for those of the train split, one worked solution each."""

    config_class = ChainsConfig

    def run(self, context: StageContext) -> StageResult:
        """Write `problems.parquet` and `samples.parquet`.

        Raises:
            DataError: there are not so many different chains.
        """
        config = self.config
        seed = context.seed if config.seed is None else config.seed
        seen: set[str] = set()
        if config.unlike is not None:
            before = read_table(context.inputs[config.unlike], Kind.PROBLEMS)
            seen.update(turns[-1]["content"] for turns in before["messages"])
        wanted = config.heldout + config.size
        chains = list(islice(self._chains(random.Random(seed), seen), wanted))
        if len(chains) < wanted:
            raise DataError(
                f"stage '{config.name}'",
                f"{wanted} different chains are wanted; {len(chains)} were found.",
                "Lower 'size', or raise 'most_steps' or 'largest'.",
            )
        problems = [
            _problem(terms, split="heldout" if index < config.heldout else "train")
            for index, terms in enumerate(chains)
        ]
        samples: list[Sample] = []
        draw, styles = random.Random(f"{seed} styles"), list[Style](config.styles)
        for problem, terms in zip(problems, chains, strict=True):
            if problem.split == "train":
                (style,) = draw.choices(styles, [*config.styles.values()])
                samples.append(
                    Sample.of(problem, solution(terms, style), finish=Finish.GIVEN,
                              origin=Origin.EXPERT, generator=f"chains {style}")
                )  # fmt: skip
        write_table(context.output, Kind.PROBLEMS, problems)
        write_table(context.output, Kind.SAMPLES, samples)
        return StageResult(
            len(samples), {"problems_train": config.size, "problems_heldout": config.heldout}
        )

    def _chains(self, draw: random.Random, seen: set[str]) -> Iterator[tuple[int, ...]]:
        """Different chains, each a first number and what is added to it; ends where none is new."""
        config = self.config
        tries = 0
        while tries < _MOST_TRIES:
            terms = [draw.randint(1, config.largest)]
            for _ in range(draw.randint(config.fewest_steps, config.most_steps)):
                step = draw.randint(1, config.largest)
                is_taken = draw.random() < 0.5 and sum(terms) >= step
                terms.append(-step if is_taken else step)
            tries += 1
            if (text := question(terms)) not in seen:
                seen.add(text)
                tries = 0
                yield tuple(terms)


def question(terms: list[int] | tuple[int, ...]) -> str:
    """The chain as it is asked."""
    return f"{terms[0]}{''.join(f'{term:+d}' for term in terms[1:])}="


def solution(terms: tuple[int, ...], style: Style = "steps") -> str:
    """The chain worked out in the given style, one sum a line."""
    lines: list[str] = []
    value, rest = terms[0], terms[1:]
    if style == "gathered":
        rest = tuple(sorted(rest, key=lambda term: term < 0))
    for term in rest:
        sum_of = "" if style == "totals" else f"{value}{term:+d}="
        if style != "answer":
            lines.append(f"{sum_of}{value + term}\n")
        value += term
    return f"<think>{''.join(lines)}</think><answer>\\boxed{{{value}}}</answer>"


def _problem(terms: tuple[int, ...], *, split: str) -> Problem:
    return Problem(
        messages=(Message("user", question(terms)),),
        answer=str(sum(terms)),
        source="chains",
        family=f"{len(terms) - 1} steps",
        split=split,
    )
