"""Demonstrations in the words of the policy that is about to learn from them.

The online form of data rewriting, which its paper (arXiv 2509.15157) names as future work: what the
stage `rewrite` does to a whole table with the base model, here the current policy does to the
demonstrations of each update. Not here: the rewriting itself (`curation/_rewriting.py`).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from megatron_reason.curation._rewriting import Rewriter
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.metrics import StepMetrics
from megatron_reason.schema.records import Origin, Problem

_NAMES = {
    Origin.POLICY: "rewrite/self",
    Origin.REWRITTEN: "rewrite/guided",
    Origin.EXPERT: "rewrite/fallback",
}


@dataclass(frozen=True)
class Retelling:
    """Rewrites the demonstrations of an update."""

    rewriter: Rewriter
    problems: Mapping[str, Problem]
    """The problem that each demonstration answers, by its sample_id."""

    def __call__(
        self, samples: Sequence[TokenizedSample], seed: int
    ) -> tuple[list[TokenizedSample], StepMetrics]:
        """`samples` with their demonstrations rewritten, and how that went.

        Args:
            samples: of any roles; those that are no demonstrations stay.
            seed: of the draws, and of the choice among them.

        Raises:
            GenerationError: the engine died.
            RewardError: grading fails as a whole.
        """
        started = time.perf_counter()
        demos = [sample for sample in samples if sample.role == Role.DEMO]
        template = self.rewriter.template
        drawn = self.rewriter.settings.sampling.model_copy(update={"seed": seed})
        settings = self.rewriter.settings.model_copy(update={"sampling": drawn})
        found = replace(self.rewriter, settings=settings, seed=seed).rewrite(
            [self.problems[demo.sample_id] for demo in demos],
            [template.decode(demo.ids[demo.num_prompt_tokens :]) for demo in demos],
        )
        metrics = StepMetrics()
        told: dict[str, TokenizedSample] = {}
        for demo, one in zip(demos, found, strict=True):
            for origin, name in _NAMES.items():
                metrics.add(name, float(one.origin == origin), 1)
            if one.overlap is not None:
                metrics.add("rewrite/overlap", one.overlap, 1)
            told[demo.sample_id] = demo
            if one.origin != Origin.EXPERT:
                ids = (*demo.ids[: demo.num_prompt_tokens], *template.response_ids(one.text))
                name = f"{demo.sample_id}/{one.origin}"
                told[demo.sample_id] = replace(demo, ids=ids, sample_id=name)
        metrics.add("time/rewrite", time.perf_counter() - started, 0)
        return [told.get(sample.sample_id, sample) for sample in samples], metrics
