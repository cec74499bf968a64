"""Rank 0's half of the loop: which prompts are answered next, and what the updates learn from.

What is answered follows from `Position` alone, so a resumed run goes on where it was. Not here:
updates, and bringing weights to the engine (`training/online.py`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from megatron_reason.config.rollout import RolloutSection
from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.errors import DataError
from megatron_reason.files import write_text
from megatron_reason.rollout.collect import Collector
from megatron_reason.rollout.experience import Experience, credited, measured
from megatron_reason.rollout.pools import HardPool
from megatron_reason.rollout.prompts import Prompt, PromptPool
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import Method, TrainState, UpdatePlan
from megatron_reason.schema.metrics import StepMetrics

_BITS = 31
Retell = Callable[
    [Sequence[TokenizedSample], int], tuple[list[TokenizedSample], StepMetrics]
]  # fmt: skip
"""Samples and a seed -> the same with other demonstrations, and metrics."""


@dataclass(frozen=True)
class Position:
    """All that the next batch depends on, beside the weights."""

    update: int
    """Updates made."""
    prompts: int
    """Prompts taken from the stream."""
    hard: HardPool
    """Problems that nobody solved."""
    consumed: Mapping[Role, int]
    """Stored sequences of each role taken."""


@dataclass(frozen=True)
class Batch:
    """What one step learns from; the same on every rank."""

    updates: tuple[tuple[TokenizedSample, ...], ...]
    """Global batch of each update; may be empty where nothing was to be learnt."""
    after: Position
    """Where the loop is once they are made."""
    version: int
    """Updates that had made the weights which answered."""
    metrics: StepMetrics = field(default_factory=StepMetrics)
    """Rewards, groups, lengths, seconds."""

    def to_json(self) -> str:
        """The batch as text, to the last bit of every number."""
        # Not pydantic's own JSON, which makes null of log-probs that are not finite.
        return json.dumps(_BATCH.dump_python(self))

    @classmethod
    def from_json(cls, text: str) -> "Batch":
        """Inverse of `to_json`.

        Raises:
            ValueError: another version wrote it.
        """
        return _BATCH.validate_json(text)


_BATCH = TypeAdapter(Batch)


@dataclass(frozen=True)
class Source:
    """Makes batches from prompts; lives on rank 0."""

    method: Method[Any]
    pool: PromptPool
    collector: Collector
    settings: RolloutSection
    joins_demos: bool
    """Whether each prompt takes a demonstration of its own along."""
    stored: Callable[[UpdatePlan, Mapping[Role, int]], list[TokenizedSample]]
    """Sequences that an update takes from the table, given those taken before."""
    total: int
    """Updates of the whole run."""
    seed: int
    folder: Path
    """Where readable rollouts go, one file a step."""
    retell: Retell | None = None
    """Puts demonstrations into the policy's own words; None takes them as they are."""

    def next(self, position: Position, *, version: int) -> Batch:
        """Answer, grade and credit what comes next.

        Args:
            position: where the loop is.
            version: updates that have made the engine's weights.

        Raises:
            GenerationError: the engine died or hung.
            RewardError: grading is broken.
        """
        state = TrainState(position.update, self.total, len(position.hard), self.seed)
        plan = self.method.plan(state)
        if plan.hard_demos:
            return self._burst(position, plan, version)
        count = min(self.settings.updates_per_step, self.total - position.update)
        experiences, prompts, metrics = self._experiences(position, plan, count)
        self._write(position.update + count, experiences)
        hard = [e.group.prompt.problem_id for e in experiences if e.credit.is_hard]
        if plan.refills:
            experiences = [e for e in experiences if e.contributes]
        updates: list[tuple[TokenizedSample, ...]] = []
        consumed = dict(position.consumed)
        for index in range(count):
            part = experiences[index * plan.prompts : (index + 1) * plan.prompts]
            fresh = [sample for experience in part for sample in experience.samples()]
            stored = self._retold(self.stored(plan, consumed), position.update + index, metrics)
            updates.append((*fresh, *stored))
            for role, taken in plan.counts.items():
                consumed[role] = consumed.get(role, 0) + taken
        after = Position(position.update + count, prompts, position.hard.pushed(hard), consumed)
        return Batch(tuple(updates), after, version, metrics)

    def _experiences(
        self, position: Position, plan: UpdatePlan, num_updates: int
    ) -> tuple[list[Experience], int, StepMetrics]:
        """Credited groups, prompts taken so far, metrics; dropped ones are replaced if so planned.

        Where refilling ends too early, the last updates have fewer groups, or none.
        """
        wanted = plan.prompts * num_updates
        found: list[Experience] = []
        metrics, consumed, attempts = StepMetrics(), position.prompts, 0
        missing = wanted
        while missing and attempts <= (self.settings.max_refills if plan.refills else 0):
            prompts = self.pool.take(missing, consumed=consumed)
            found += self._answered(prompts, consumed, plan, metrics)
            consumed += missing
            attempts += 1
            missing = wanted - sum(e.contributes for e in found)
        metrics.merge(measured(found))
        metrics.add("groups/refills", max(attempts - 1, 0), 1)
        # Seconds add up over the refills of one step.
        for name in ("time/rollout", "time/grade", *(["time/rewrite"] if self.retell else [])):
            metrics.add(name, 0.0, 1)
        return found, consumed, metrics

    def _answered(
        self, prompts: Sequence[Prompt], consumed: int, plan: UpdatePlan, metrics: StepMetrics
    ) -> list[Experience]:
        sampling = SamplingConfig(
            samples_per_prompt=plan.rollouts_per_prompt,
            temperature=self.method.temperature,
            max_tokens=self.settings.max_tokens,
            seed=_seed(self.seed, consumed),
        )
        # In every pass over the prompts each shows another of its demonstrations.
        which = consumed // len(self.pool.prompts) if self.joins_demos else None
        if which is not None and self.retell is not None:
            demos = [prompt.demos[which % len(prompt.demos)] for prompt in prompts]
            told = self._retold(demos, consumed, metrics)
            prompts = [
                replace(prompt, demos=(demo,)) for prompt, demo in zip(prompts, told, strict=True)
            ]
        collected = self.collector.collect(prompts, sampling, which_demo=which)
        tokens = sum(
            len(r.completion.token_ids) for group in collected.groups for r in group.rollouts
        )
        metrics.add("time/rollout", collected.generate_s, 0)
        metrics.add("time/grade", collected.grade_s, 0)
        metrics.add("perf/rollout_tokens_per_s", tokens, collected.generate_s)
        return [
            credited(
                self.method, group, name=f"{consumed + i}-{group.prompt.problem_id}", seed=self.seed
            )
            for i, group in enumerate(collected.groups)
        ]

    def _burst(self, position: Position, plan: UpdatePlan, version: int) -> Batch:
        """Demonstrations of the newest prompts that nobody solved."""
        names, rest = position.hard.taken(plan.hard_demos)
        which = position.prompts // len(self.pool.prompts)
        metrics = StepMetrics()
        demos = [prompt.demos[which % len(prompt.demos)] for prompt in self.pool.of(names)]
        demos = self._retold(demos, position.update, metrics)
        if self.retell is not None:
            metrics.add("time/rewrite", 0.0, 1)
        metrics.add("groups/burst_demos", len(demos), 1)
        after = replace(position, update=position.update + 1, hard=rest)
        return Batch((tuple(demos),), after, version, metrics)

    def _retold(
        self, samples: list[TokenizedSample], moment: int, metrics: StepMetrics
    ) -> list[TokenizedSample]:
        """`samples` as they are learnt from at a moment that is counted in any way."""
        if self.retell is None or not samples:
            return samples
        told, measures = self.retell(samples, _seed(self.seed, moment))
        metrics.merge(measures)
        return told

    def _write(self, step: int, experiences: Sequence[Experience]) -> None:
        rows = [
            row
            for experience in experiences
            for row in experience.rows(
                "\n".join(turn.content for turn in experience.group.prompt.problem.messages)
            )
        ]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = self.folder / f"step_{step:06d}.jsonl"
        try:
            write_text(path, "".join(lines))
        except OSError as error:
            raise DataError(
                str(path),
                f"the rollouts of this step cannot be written: {error.strerror}.",
                "Make room; the same command goes on from the last checkpoint.",
            ) from error


def _seed(seed: int, consumed: int) -> int:
    digest = sha256(f"{seed}\x1f{consumed}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - _BITS)
