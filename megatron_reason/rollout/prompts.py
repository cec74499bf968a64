"""The prompts of a run and the order in which they are answered.

Each prompt is tokenised once and knows its demonstrations. Which prompts come next follows from
how many were taken: resuming needs that one number. Not here: answering them (`collect.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_reason.engine.order import next_rows
from megatron_reason.errors import DataError
from megatron_reason.generation.templates import Template
from megatron_reason.schema.batch import TokenizedSample
from megatron_reason.schema.records import Problem
from megatron_reason.schema.tables import Quarantine


@dataclass(frozen=True)
class Prompt:
    """One problem, ready to be answered."""

    problem: Problem
    ids: tuple[int, ...]
    """Conversation up to where the answer begins."""
    demos: tuple[TokenizedSample, ...] = ()
    """Its demonstrations, in the order of the table."""

    @property
    def problem_id(self) -> str:
        """The problem's."""
        return self.problem.problem_id


@dataclass(frozen=True)
class PromptPool:
    """All prompts of a run, as an endless stream."""

    prompts: Sequence[Prompt]
    order: Literal["shuffled", "table"]
    seed: int

    def take(self, count: int, *, consumed: int) -> list[Prompt]:
        """Prompts at positions [consumed, consumed + count) of the stream."""
        size = len(self.prompts)
        if self.order == "table":
            rows = [(consumed + i) % size for i in range(count)]
        else:
            rows = next_rows(size, seed=self.seed, consumed=consumed, count=count)
        return [self.prompts[row] for row in rows]

    def of(self, problem_ids: Sequence[str]) -> list[Prompt]:
        """The prompts of these problems, in their order."""
        by_id = {prompt.problem_id: prompt for prompt in self.prompts}
        return [by_id[problem_id] for problem_id in problem_ids]


@dataclass(frozen=True)
class Admission:
    """What a prompt needs to be answered and learnt from."""

    template: Template
    """How problems become prompts."""
    longest_prompt: int
    """Tokens that leave room for a response of full length."""
    demos: Mapping[str, Sequence[TokenizedSample]] | None
    """Demonstrations by problem id, where the method joins them; None where it does not."""

    def admit(self, problems: Sequence[Problem], aside: Quarantine) -> list[Prompt]:
        """The prompts of those problems that can be answered and learnt from.

        Args:
            problems: candidates, in order.
            aside: where the others go, each with its reason.

        Raises:
            DataError: none is left.
        """
        prompts = [p for problem in problems if (p := self._prompt(problem, aside)) is not None]
        if not prompts:
            raise DataError(
                "rollout.problems",
                f"none of {len(problems)} problems can be learnt from: {aside.counts()}.",
                "Look into quarantine.parquet; raise engine.max_model_len, or give the variant a "
                "table with demonstrations of these problems.",
            )
        return prompts

    def _prompt(self, problem: Problem, aside: Quarantine) -> Prompt | None:
        ids = tuple(self.template.prompt_ids(problem.messages))
        place = f"problem {problem.problem_id}"
        if len(ids) > self.longest_prompt:
            detail = f"{len(ids)} tokens, {self.longest_prompt} leave room for rollout.max_tokens"
            aside.add("prompt too long", problem, detail, place=place)
            return None
        if self.demos is None:
            return Prompt(problem, ids)
        demos = tuple(self.demos.get(problem.problem_id, ()))
        if not demos:
            aside.add("no demonstration", problem, place=place)
            return None
        return Prompt(problem, ids, demos)
