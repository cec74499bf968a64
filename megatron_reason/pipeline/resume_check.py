"""Whether a training run, stopped and resumed, is the run that was never stopped.

2N updates at once against N updates, a new start, and the rest: losses and final weights. A step
that makes several updates is not cut, so the stop may come after more than N. Not here: saving and
loading (`engine/checkpoint.py`).
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from megatron_reason.config.launch import LaunchConfig
from megatron_reason.errors import CheckpointError, ConfigError
from megatron_reason.files import hash_file, write_json
from megatron_reason.pipeline.workers import run_on_ranks
from megatron_reason.tracking.jsonl import METRICS, read_metrics
from megatron_reason.training.jobs import TrainJob

REPORT = "resume_check.json"
_TOLERANCE = 1e-5
_COMPARED = ("train/loss", "train/grad_norm")


@dataclass(frozen=True)
class ResumeReport:
    """What a resumed run differs in from one that was never stopped."""

    updates: int
    """Updates of each run."""
    resumed_after: int
    """Updates after which the stopped one was stopped and went on."""
    max_difference: float
    """Largest relative difference of loss and gradient norm over all updates."""
    weights_are_equal: bool
    """Whether every byte of the exported weights is the same."""


def resume_check(job: TrainJob, launch: LaunchConfig, *, updates: int) -> ResumeReport:
    """Run `job` twice in short, once with an interruption in the middle.

    Args:
        job: what to train; its output folder is where the two runs go, begun anew.
        launch: worker processes.
        updates: N; each run makes 2N.

    Raises:
        ConfigError: one step makes all 2N updates.
        CheckpointError: losses differ by more than 1e-5, relatively, or nothing was resumed.
    """
    _require_two_steps(job, updates)
    shutil.rmtree(job.output, ignore_errors=True)
    length = {"updates": 2 * updates, "epochs": None}
    every = job.train.checkpoint.model_copy(update={"every": 2 * updates})
    train = job.train.model_copy(update={**length, "checkpoint": every})
    whole = job.model_copy(update={"train": train, "output": job.output / "whole"})
    halves = whole.model_copy(update={"output": job.output / "halves"})
    first = halves.model_copy(update={"stop_after": updates})
    for name, part in (("whole", whole), ("first_half", first)):
        run_on_ranks(part, name, launch, job.output)
    before = _logged(halves.output)
    run_on_ranks(halves, "second_half", launch, job.output)
    report = ResumeReport(
        updates=2 * updates,
        resumed_after=_resumed_after(halves.output, before),
        max_difference=_largest_difference(whole.output, halves.output),
        weights_are_equal=_weights(whole.output) == _weights(halves.output),
    )
    write_json(job.output / REPORT, asdict(report))
    if report.max_difference > _TOLERANCE:
        raise CheckpointError(
            str(job.output),
            f"the resumed run differs from the uninterrupted one by {report.max_difference:.1e} in "
            f"loss or gradient norm; {_TOLERANCE:.0e} is allowed.",
            f"Compare {METRICS} in its folders 'whole' and 'halves', and report it.",
        )
    return report


def _require_two_steps(job: TrainJob, updates: int) -> None:
    """Refuse a check that cannot stop in between, as whole steps are all that can be stopped at."""
    per_step = 1 if job.rollout is None else job.rollout.settings.updates_per_step
    if per_step >= 2 * updates:
        raise ConfigError(
            "--updates",
            f"one step makes {per_step} updates (rollout.updates_per_step), and each run would "
            f"make {2 * updates}: there is nowhere to stop.",
            f"Give --updates {per_step // 2 + 1} or more.",
        )


def _logged(output: Path) -> list[tuple[float, float]]:
    """Update and moment of each line that was logged."""
    return [(row["step"], row["time"]) for row in read_metrics(output / METRICS)]


def _resumed_after(output: Path, before: list[tuple[float, float]]) -> int:
    """Update after which the second half went on.

    A run that begins anew writes all its lines again, at other moments, and would pass for equal.

    Raises:
        CheckpointError: the second half began anew, or had nothing left to do.
    """
    after = _logged(output)
    resumed = bool(before) and after[: len(before)] == before
    if resumed and after[-1][0] > before[-1][0]:
        return int(before[-1][0])
    what = (
        f"the first half made all {before[-1][0]:.0f} updates, so nothing was left to resume."
        if resumed
        else "the second half did not go on from the first; it began anew."
    )
    raise CheckpointError(
        str(output), what, "Give more --updates; report it if that changes nothing."
    )


def _largest_difference(left: Path, right: Path) -> float:
    frames = [
        pl.read_ndjson(folder / METRICS, infer_schema_length=None).select("step", *_COMPARED)
        for folder in (left, right)
    ]
    if frames[0]["step"].to_list() != frames[1]["step"].to_list():
        raise CheckpointError(
            str(right), "the two runs logged other updates.", "Report it, with both metrics files."
        )
    parts = [
        ((frames[0][name] - frames[1][name]).abs() / frames[0][name].abs().clip(1e-12)).max()
        for name in _COMPARED
    ]
    return max(float(part) for part in parts if isinstance(part, (int, float)))


def _weights(output: Path) -> dict[str, str]:
    """Hash of each weights file of an export."""
    found = sorted((output / "huggingface").glob("*.safetensors"))
    assert found, f"nothing was exported to {output}"
    return {path.name: hash_file(path) for path in found}
