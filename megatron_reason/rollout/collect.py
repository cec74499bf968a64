"""Prompts -> graded groups of rollouts; answers of one call are graded while the next are drawn.

Token ids are the currency: text is derived from them for grading and is never encoded again. Not
here: what a group is worth (`experience.py`), and the engine's weights.
"""

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

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
    prompts_per_call: int | None = None
    """Prompts given to the engine at once; None gives it all."""

    def collect(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, *, which_demo: int | None
    ) -> Collected:
        """Answer and grade `prompts`.

        Args:
            prompts: what is asked.
            sampling: how answers are drawn; its seed must differ from call to call.
            which_demo: number by which one of each prompt's demonstrations is chosen, cyclically;
                None joins none.

        Raises:
            GenerationError: the engine died or hung.
            RewardError: grading is broken: too many timeouts and crashes, or a score that is no
                number.
        """
        size = self.prompts_per_call or max(len(prompts), 1)
        calls = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        started = time.perf_counter()
        with ThreadPoolExecutor(1, "grade") as grading:
            graded = []
            for number, call in enumerate(calls):
                # A prompt that occurs in two calls is answered twice, not in the same way.
                own = sampling.model_copy(update={"seed": sampling.seed + number})
                drawn = self.engine.generate(
                    [prompt.ids for prompt in call], own,
                    stop_token_ids=self.template.stop_token_ids,
                )  # fmt: skip
                work = partial(self._grade, call, drawn, which_demo=which_demo)
                graded.append(grading.submit(work))
            generated = time.perf_counter()
            groups = [group for part in graded for group in part.result()]
        done = time.perf_counter()
        return Collected(groups, generated - started, done - generated)

    def _grade(
        self, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Completion]], *,
        which_demo: int | None,
    ) -> list[RolloutGroup]:  # fmt: skip
        decode = self.template.decode
        demos = [_demo_of(prompt, which_demo) for prompt in prompts]
        texts = [[decode(completion.token_ids) for completion in group] for group in drawn]
        pairs: list[tuple[str, str]] = []
        for prompt, group, demo in zip(prompts, texts, demos, strict=True):
            pairs += [(prompt.problem.answer, text) for text in group]
            if demo is not None:
                pairs.append((prompt.problem.answer, decode(demo.ids[demo.num_prompt_tokens :])))
        verdicts = iter(self.graders.grade_many(pairs))
        groups: list[RolloutGroup] = []
        for prompt, completions, group, demo in zip(prompts, drawn, texts, demos, strict=True):
            rollouts = [
                Rollout(completion, text, self._finite(next(verdicts), prompt))
                for completion, text in zip(completions, group, strict=True)
            ]
            demo_verdict = None if demo is None else self._finite(next(verdicts), prompt)
            groups.append(RolloutGroup(prompt, tuple(rollouts), demo, demo_verdict))
        return groups

    def _finite(self, verdict: Verdict, prompt: Prompt) -> Verdict:
        if not math.isfinite(verdict.score):
            raise RewardError(
                f"reward '{self.graders.reward}'",
                f"it gave {verdict.score} for an answer to problem {prompt.problem_id}.",
                "A reward must return a finite score; mend it, or let it return 0 and say why in "
                "the status.",
            )
        return verdict


def _demo_of(prompt: Prompt, which: int | None) -> TokenizedSample | None:
    if which is None or not prompt.demos:
        return None
    return prompt.demos[which % len(prompt.demos)]
