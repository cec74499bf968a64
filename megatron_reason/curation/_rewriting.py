r"""Data rewriting of one batch of problems: solve alone, else retell the reference, else keep it.

Source: "Mind the Gap: Data Rewriting for Stable Off-Policy Supervised Fine-Tuning" (arXiv
2509.15157). Self-alignment draws responses to the plain problem and keeps a random correct one;
guided alignment puts the reference solution into the prompt of what is left ("digest and retell")
and keeps a random correct one; the rest keeps the expert's solution. Whatever the stage, the
training prompt is the plain problem. The paper names neither sampling temperature nor verifier:
the temperature here is 1, the verifier the configured reward, and only responses that ended by
themselves are kept. Not here: tables (`rewrite.py`), settings (`config/rewriting.py`).
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_reason.config.rewriting import RewritingConfig
from megatron_reason.generation.base import Engine
from megatron_reason.generation.templates import Template
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.records import Finish, Message, Origin, Problem, Status, Verdict

_WORD = re.compile(r"\w+|[^\w\s]")
OVERLAP_WORDS = 8


@dataclass(frozen=True)
class Rewritten:
    """What became of one problem."""

    origin: Origin
    """`policy`: solved alone; `rewritten`: retold; `expert`: neither."""
    text: str
    verdict: Verdict | None
    """None for the expert's own solution."""
    overlap: float | None
    """Verbatim overlap with the reference, of a retelling."""
    num_copies: int = 0
    """Correct retellings that were copies."""
    num_leaks: int = 0
    """Correct retellings that spoke of their prompt."""
    was_too_long: bool = False
    """The guided prompt, or the plain one, would not have fitted into the engine's context."""


@dataclass(frozen=True)
class _Candidate:
    text: str
    verdict: Verdict


@dataclass(frozen=True)
class Rewriter:
    """Rewrites batches of problems with one engine; tables and training loops alike call it."""

    engine: Engine
    template: Template
    pool: AnswerPool
    settings: RewritingConfig
    seed: int
    """Seed of the choice among correct responses."""

    def rewrite(self, problems: Sequence[Problem], references: Sequence[str]) -> list[Rewritten]:
        """What becomes of each problem, in order.

        Args:
            problems: with plain prompts and true answers.
            references: the expert's solution of each.

        Raises:
            GenerationError: the engine died.
            RewardError: grading fails as a whole.
        """
        room = int(self.engine.description["max_model_len"])
        plain = {
            index: prompt
            for index, problem in enumerate(problems)
            if len(prompt := self.template.prompt_ids(problem.messages)) < room
        }
        alone = self._correct([problems[index] for index in plain], [*plain.values()])
        results: dict[int, Rewritten] = {}
        for index, candidates in zip(plain, alone, strict=True):
            if candidates:
                chosen = self._choice(problems[index], candidates)
                results[index] = Rewritten(Origin.POLICY, chosen.text, chosen.verdict, None)
        unsolved = [index for index in range(len(problems)) if index not in results]
        guided: dict[int, list[int]] = {}
        for index in unsolved:
            prompt = self._guided_prompt(problems[index], references[index])
            if len(prompt) < room:
                guided[index] = prompt
            else:
                results[index] = _kept(references[index], was_too_long=True)
        told = self._correct([problems[index] for index in guided], [*guided.values()])
        for index, candidates in zip(guided, told, strict=True):
            results[index] = self._retold(problems[index], references[index], candidates)
        return [results[index] for index in range(len(problems))]

    def _guided_prompt(self, problem: Problem, reference: str) -> list[int]:
        *before, question = problem.messages
        text = self.settings.prompt.format(problem=question.content, solution=reference)
        return list(self.template.prompt_ids([*before, Message(question.role, text)]))

    def _correct(
        self, problems: Sequence[Problem], prompts: Sequence[Sequence[int]]
    ) -> list[list[_Candidate]]:
        """Correct finished responses to each prompt."""
        if not problems:
            return []
        drawn = self.engine.generate(
            prompts, self.settings.sampling, stop_token_ids=self.template.stop_token_ids
        )
        texts = [
            [self.template.answer(c.token_ids).strip() for c in some if c.finish is Finish.STOP]
            for some in drawn
        ]
        pairs = [(p.answer, text) for p, some in zip(problems, texts, strict=True) for text in some]
        verdicts = iter(self.pool.grade_many(pairs))
        graded = [[_Candidate(text, next(verdicts)) for text in some] for some in texts]
        return [[c for c in some if c.verdict.status is Status.OK] for some in graded]

    def _retold(
        self, problem: Problem, reference: str, candidates: Sequence[_Candidate]
    ) -> Rewritten:
        settings = self.settings
        silent = [c for c in candidates if not mentions(c.text, settings.refused_phrases)]
        num_leaks = len(candidates) - len(silent)
        own = [c for c in silent if verbatim_overlap(c.text, reference) < settings.copy_threshold]
        num_copies = len(silent) - len(own)
        allowed = own if settings.copies == "refuse" else silent
        if not allowed:
            return _kept(reference, num_copies=num_copies, num_leaks=num_leaks)
        chosen = self._choice(problem, allowed)
        return Rewritten(
            Origin.REWRITTEN,
            chosen.text,
            chosen.verdict,
            verbatim_overlap(chosen.text, reference),
            num_copies,
            num_leaks,
        )

    def _choice(self, problem: Problem, candidates: Sequence[_Candidate]) -> _Candidate:
        """One of the candidates, by the seed and the problem alone."""
        return random.Random(f"{self.seed}/{problem.problem_id}").choice(candidates)


def verbatim_overlap(text: str, reference: str, num_words: int = OVERLAP_WORDS) -> float:
    """Share of the runs of `num_words` words and marks of `text` that `reference` has as well.

    A shorter text is one run. 0 for an empty one, 1 for a copy.
    """
    runs = _runs(text, num_words)
    return len(runs & _runs(reference, num_words)) / len(runs) if runs else 0.0


def mentions(text: str, phrases: Sequence[str]) -> bool:
    """Whether `text` contains one of `phrases`, in any case."""
    lowered = text.lower()
    return any(phrase.lower() in lowered for phrase in phrases)


def _runs(text: str, num_words: int) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    if not words:
        return set()
    return {tuple(words[i : i + num_words]) for i in range(max(len(words) - num_words, 0) + 1)}


def _kept(
    reference: str, *, num_copies: int = 0, num_leaks: int = 0, was_too_long: bool = False
) -> Rewritten:
    return Rewritten(Origin.EXPERT, reference, None, None, num_copies, num_leaks, was_too_long)
