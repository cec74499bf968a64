"""Graded groups -> what an update learns from them, what is counted, what a person can read.

The method's `credit` decides; here its decision becomes samples. Rollouts that could not be checked
(timeout, crash) are neither right nor wrong: they leave their group. Not here: drawing and grading
(`collect.py`), losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from statistics import pstdev
from typing import Any

from megatron_reason.rollout.collect import Rollout, RolloutGroup
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.credit import Credit, GroupOutcome
from megatron_reason.schema.method import Method
from megatron_reason.schema.metrics import StepMetrics
from megatron_reason.schema.records import Finish, Status

UNCHECKED = (Status.TIMEOUT, Status.CRASH)
"""Statuses that say nothing of the answer."""


@dataclass(frozen=True)
class Experience:
    """A group with the method's verdict on it."""

    group: RolloutGroup
    name: str
    """Unique within the run; sequences of the group share it."""
    kept: tuple[Rollout, ...]
    """Rollouts that were checked, or none if too few were left to compare."""
    credit: Credit

    @property
    def contributes(self) -> bool:
        """Whether an update learns anything from it."""
        return bool(self.samples())

    def samples(self) -> list[TokenizedSample]:
        """Sequences for the update: rollouts, then the demonstration, as far as they are kept."""
        credit, prompt = self.credit, self.group.prompt
        samples: list[TokenizedSample] = []
        if credit.keep_rollouts:
            samples += [
                TokenizedSample(
                    sample_id=f"{self.name}/{index}",
                    role=Role.ROLLOUT,
                    ids=(*prompt.ids, *rollout.completion.token_ids),
                    num_prompt_tokens=len(prompt.ids),
                    group=self.name,
                    advantage=advantage,
                    is_correct=rollout.verdict.status is Status.OK,
                    coef=credit.rollout_coef,
                    rollout_logprobs=rollout.completion.logprobs,
                )
                for index, (rollout, advantage) in enumerate(
                    zip(self.kept, credit.advantages, strict=True)
                )
                if rollout.completion.token_ids
            ]
        if credit.keep_demo and self.group.demo is not None:
            samples.append(
                replace(
                    self.group.demo,
                    sample_id=f"{self.name}/demo",
                    group=self.name,
                    advantage=credit.demo_advantage,
                    coef=credit.demo_coef,
                )
            )
        return samples

    def rows(self, problem_text: str) -> list[dict[str, Any]]:
        """One readable row for each rollout; what was not kept has no advantage."""
        advantages = dict(zip(map(id, self.kept), self.credit.advantages, strict=True))
        return [
            {
                "problem_id": self.group.prompt.problem_id,
                "problem": problem_text,
                "answer": self.group.prompt.problem.answer,
                "response": rollout.text,
                "extracted": rollout.verdict.extracted,
                "status": str(rollout.verdict.status),
                "reward": rollout.verdict.score,
                "advantage": advantages.get(id(rollout)) if self.credit.keep_rollouts else None,
                "coef": self.credit.rollout_coef,
                "num_tokens": len(rollout.completion.token_ids),
                "finish": str(rollout.completion.finish),
                "policy_version": rollout.completion.policy_version,
            }
            for rollout in self.group.rollouts
        ]


def credited(method: Method[Any], group: RolloutGroup, *, name: str, seed: int) -> Experience:
    """What `method` makes of a graded group.

    A group of which fewer than two rollouts could be checked has nothing to compare and is dropped;
    a group that was drawn with a single member is the method's own choice. A demonstration that
    could not be checked has no reward, and is left out where the method wants one.

    Args:
        method: what is learnt.
        group: graded rollouts of one prompt.
        name: unique name of the group.
        seed: the run's.
    """
    kept = tuple(r for r in group.rollouts if r.verdict.status not in UNCHECKED)
    if len(kept) < min(2, len(group.rollouts)):
        nothing = Credit((), keep_rollouts=False)
        return Experience(group, name, (), nothing)
    demo = group.demo_verdict
    draw = int.from_bytes(sha256(f"{seed}\x1f{name}".encode()).digest()[:8], "little") / 2**64
    outcome = GroupOutcome(
        rewards=tuple(rollout.verdict.score for rollout in kept),
        solved=tuple(rollout.verdict.status is Status.OK for rollout in kept),
        lengths=tuple(len(rollout.completion.token_ids) for rollout in kept),
        demo_reward=None if demo is None or demo.status in UNCHECKED else demo.score,
        draw=draw,
    )
    return Experience(group, name, kept, method.credit(outcome))


def measured(experiences: Sequence[Experience]) -> StepMetrics:
    """Metrics of everything that was answered in a step, whether kept or dropped."""
    metrics = StepMetrics()
    for experience in experiences:
        group = experience.group
        for rollout in group.rollouts:
            _add_rollout(metrics, rollout)
        metrics.add("prompt_length/mean", len(group.prompt.ids), 1)
        num_solved = sum(r.verdict.status is Status.OK for r in experience.kept)
        kind = "mixed"
        if not experience.kept:
            kind = "unchecked"
        elif not num_solved:
            kind = "all_wrong"
        elif num_solved == len(experience.kept):
            kind = "all_correct"
        for name in ("all_correct", "all_wrong", "mixed"):
            metrics.add(f"groups/{name}", float(name == kind), 1)
        metrics.add("groups/dropped", float(not experience.contributes), 1)
        metrics.add("groups/incomplete", float(len(experience.kept) < len(group.rollouts)), 1)
        if experience.kept:
            rewards = [rollout.verdict.score for rollout in experience.kept]
            metrics.add("reward/std", pstdev(rewards), 1)
        if group.demo_verdict is not None:
            is_checked = group.demo_verdict.status not in UNCHECKED
            metrics.add("groups/demo_unchecked", float(not is_checked), 1)
            if is_checked:
                metrics.add("reward/demo", group.demo_verdict.score, 1)
            metrics.add("groups/with_demo", float(experience.credit.keep_demo), 1)
    return metrics


def _add_rollout(metrics: StepMetrics, rollout: Rollout) -> None:
    verdict, completion = rollout.verdict, rollout.completion
    # What could not be checked is neither right nor wrong; its share is that of its status.
    if verdict.status not in UNCHECKED:
        metrics.add("reward/mean", verdict.score, 1)
    if verdict.format_score is not None:
        metrics.add("reward/format", verdict.format_score, 1)
    for status in Status:
        metrics.add(f"reward/status_{status}", float(verdict.status is status), 1)
    metrics.add("response_length/mean", len(completion.token_ids), 1)
    metrics.add("response_length/truncated", float(completion.finish is Finish.LENGTH), 1)
