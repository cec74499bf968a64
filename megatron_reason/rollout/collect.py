"""Prompts -> graded groups of rollouts; a finished group is graded while others are drawn.

Token ids are the currency: text is derived from them for grading and is never encoded again. Not
here: what a group is worth (`experience.py`), and the engine's weights.
"""

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.errors import RewardError
from megatron_reason.generation.base import Completion, Engine
from megatron_reason.generation.templates import Template
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.rollout.prompts import Prompt
from megatron_reason.schema.batch import TokenizedSample
from megatron_reason.schema.records import Verdict


@dataclass(frozen=True)
class Rollout:
    """One answer of the policy and what was thought of it."""

    completion: Completion
    text: str
    verdict: Verdict


@dataclass(frozen=True)
class RolloutGroup:
    """One prompt with all its rollouts and, where the method joins one, a demonstration."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    demo: TokenizedSample | None = None
    demo_verdict: Verdict | None = None


@dataclass(frozen=True)
class Collected:
    """Groups in the order of their prompts, and what they took."""

    groups: list[RolloutGroup]
    generate_s: float
    """Seconds during which the engine worked."""
    grade_s: float
    """Seconds after that, until the last verdict."""


@dataclass(frozen=True)
class Collector:
    """Engine and graders, as they are used together."""

    engine: Engine
    graders: AnswerPool
    template: Template

    def collect(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, *, which_demo: int | None
    ) -> Collected:
        """Answer and grade `prompts`.

        Args:
            prompts: what is asked.
            sampling: how answers are drawn; its seed must differ from step to step.
            which_demo: number by which one of each prompt's demonstrations is chosen, cyclically;
                None joins none.

        Raises:
            GenerationError: the engine died or hung.
            RewardError: grading is broken: too many timeouts and crashes, or a score that is no
                number.
        """
        started = time.perf_counter()
        graded: dict[int, Future[RolloutGroup]] = {}
        with ThreadPoolExecutor(1, "grade") as grading:
            stream = self.engine.stream(
                [prompt.ids for prompt in prompts], sampling,
                stop_token_ids=self.template.stop_token_ids,
            )  # fmt: skip
            for index, completions in stream:
                prompt = prompts[index]
                demo = _demo_of(prompt, which_demo)
                graded[index] = grading.submit(self._graded, prompt, completions, demo)
            generated = time.perf_counter()
            groups = [graded[index].result() for index in range(len(prompts))]
        done = time.perf_counter()
        return Collected(groups, generated - started, done - generated)

    def _graded(
        self, prompt: Prompt, completions: Sequence[Completion], demo: TokenizedSample | None
    ) -> RolloutGroup:
        texts = [self.template.answer(completion.token_ids) for completion in completions]
        asked = [*texts]
        if demo is not None:
            asked.append(self.template.answer(demo.ids[demo.num_prompt_tokens :]))
        found = self.graders.grade_many([(prompt.problem.answer, text) for text in asked])
        verdicts = [self._finite(verdict, prompt) for verdict in found]
        rollouts = tuple(map(Rollout, completions, texts, verdicts))
        return RolloutGroup(prompt, rollouts, demo, None if demo is None else verdicts[-1])

    def _finite(self, verdict: Verdict, prompt: Prompt) -> Verdict:
        scores = (verdict.score, verdict.format_score or 0.0)
        if broken := [score for score in scores if not math.isfinite(score)]:
            raise RewardError(
                f"reward '{self.graders.reward}'",
                f"it gave {broken[0]} for an answer to problem {prompt.problem_id}.",
                "A reward must return a finite score; mend it, or let it return 0 and say why in "
                "the status.",
            )
        return verdict


def _demo_of(prompt: Prompt, which: int | None) -> TokenizedSample | None:
    if which is None or not prompt.demos:
        return None
    return prompt.demos[which % len(prompt.demos)]
