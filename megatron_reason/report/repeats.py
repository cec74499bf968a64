"""Trainings that differ in their seed alone become one model of the report: means over seeds.

A number of such a model is the mean over its trainings, with a t interval over them; a curve is the
mean of theirs at each update. Where single answers are shown they are those of the first seed. Not
here: how a variant comes to be repeated (`pipeline/variants.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl

from megatron_reason.evaluation.estimators import Estimate, over_trainings
from megatron_reason.evaluation.summary import EvalSummary
from megatron_reason.report.run_data import Average, Measurement, RunData

_SHARES = ("pass@", "maj@", "truncated_fraction", "no_answer_fraction")


def gathered(data: RunData) -> RunData:
    """The run with one model for all trainings of a variant; as it is where none is repeated."""
    settings: Mapping[str, Mapping[str, object]] = data.settings.get("variants") or {}
    model_of = {
        name: str((settings.get(name) or {}).get("repeats") or name) for name in data.models
    }
    if all(name == model for name, model in model_of.items()):
        return data
    trainings: dict[str, list[str]] = {}
    for name, model in model_of.items():
        trainings.setdefault(model, []).append(name)
    return replace(
        data,
        models=[*trainings],
        selections=[
            replace(selection, variants=tuple(dict.fromkeys(
                model_of.get(variant, variant) for variant in selection.variants
            )))
            for selection in data.selections
        ],
        training={
            model: _mean_curve([data.training[name] for name in names if name in data.training])
            for model, names in trainings.items()
            if data.training.keys() & set(names)
        },
        measurements=[
            _together(model, found)
            for problem_set in data.problem_sets
            for model, names in trainings.items()
            if (found := [m for m in data.on(problem_set) if m.model in names])
        ],
        averages=[
            Average(name, model, _mean_summary([a.summary for a in found]), len(found))
            for name in dict.fromkeys(a.problem_set for a in data.averages)
            for model, names in trainings.items()
            if (found := [
                a for a in data.averages if a.problem_set == name and a.model in names
            ])
        ],
        seeds={model: len(names) for model, names in trainings.items() if len(names) > 1},
    )  # fmt: skip


def _mean_curve(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Mean of every metric at each update over those that have it."""
    if len(frames) == 1:
        return frames[0]
    together = pl.concat(frames, how="diagonal_relaxed")
    return together.group_by("step").agg(pl.selectors.numeric().mean()).sort("step")


def _together(model: str, found: Sequence[Measurement]) -> Measurement:
    """One measurement of a model; the summary of a single training stays what it is."""
    first = found[0]
    summary = _mean_summary([measurement.summary for measurement in found])
    return replace(first, model=model, summary=summary, num_trainings=len(found))


def _mean_summary(summaries: Sequence[EvalSummary]) -> EvalSummary:
    """Means over trainings with intervals over them; a single one stays what it is."""
    first = summaries[0]
    if len(summaries) == 1:
        return first
    names = [name for name in first.metrics
             if all(name in summary.metrics for summary in summaries)]  # fmt: skip
    return EvalSummary(
        metrics={name: _over([s.metrics[name] for s in summaries], name) for name in names},
        num_problems=first.num_problems,
        num_samples=sum(s.num_samples for s in summaries),
        statuses={
            status: sum(s.statuses.get(status, 0) for s in summaries)
            for status in dict.fromkeys(status for s in summaries for status in s.statuses)
        },
    )


def _over(estimates: Sequence[Estimate], name: str) -> Estimate:
    values = [estimate.value for estimate in estimates]
    found = over_trainings(values, num_samples=sum(estimate.n for estimate in estimates))
    highest = 1.0 if name.startswith(_SHARES) else float("inf")
    return replace(found, low=max(found.low, 0.0), high=min(found.high, highest))
