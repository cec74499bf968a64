"""Measures one model on a set of problems: answers, verdicts, entropy.

Answers come from the generation engine, entropy from a forward pass of the trainer's own model on
worker processes. Not here: what is computed from them (`evaluation`).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from megatron_reason.config.evaluate import EvalConfig
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.errors import ConfigError
from megatron_reason.evaluation.base import find_benchmark
from megatron_reason.evaluation.regrade import Regraded, evaluation_folders, grader_of, regrade
from megatron_reason.evaluation.run import evaluate, fill_entropy
from megatron_reason.evaluation.summary import EvalSummary
from megatron_reason.generation.base import Engine
from megatron_reason.generation.templates import load_template
from megatron_reason.rewards.base import REWARDS
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.problems import heldout_problems
from megatron_reason.schema.tables import Kind, write_table
from megatron_reason.training.jobs import EntropyJob

ENTROPY_TABLE = "entropy.parquet"
_GRADING_DEADLINE_S = 10.0


@dataclass(frozen=True)
class ProblemSet:
    """What a model is measured on."""

    name: str
    """Name of the table or benchmark."""
    problems: pl.DataFrame
    """Rows of `Kind.PROBLEMS`."""
    reward: str
    """Reward that grades the answers."""
    folder: Path
    """Where the results go, below the stage's folder."""
    sampling: SamplingConfig
    """How its answers are drawn."""


@dataclass(frozen=True)
class Subject:
    """The model that is measured."""

    weights: Path
    """Its Hugging Face folder."""
    model: ModelConfig
    """Data type and context."""
    template: TemplateConfig
    """How problems become prompts."""
    parallel: ParallelConfig
    """Layout of the model over the worker processes."""
    seed: int
    """Seed of the measurement."""


def problem_sets(config: EvalConfig, table: Path | None) -> list[ProblemSet]:
    """The sets that `config` names: its table, then its benchmarks, each in a folder of its own.

    Args:
        config: what is asked for.
        table: folder of the problems table, if `config` names one.

    Raises:
        DataError: a table without held-out problems, or a benchmark whose file is missing or wrong.
        ConfigError: no such benchmark.
    """
    sets: list[ProblemSet] = []
    if table is not None:
        name = config.table or table.name
        sets.append(
            ProblemSet(name, heldout_problems(table), config.reward, Path(), config.sampling)
        )
    for field, named in (("samples_of", config.samples_of), ("reward_of", config.reward_of)):
        for name in named:
            find_benchmark(name, f"eval.{field}")
    for name in config.benchmarks:
        benchmark = find_benchmark(name)
        problems = benchmark.problems(config.benchmark_folder, choice_seed=config.choice_seed)
        reward = config.reward_of.get(name) or config.benchmark_reward or benchmark.reward
        key = f"reward_of.{name}" if name in config.reward_of else "benchmark_reward"
        REWARDS.get(reward, f"eval.{key}")
        sampling = config.sampling
        if name in config.samples_of:
            sampling = sampling.model_copy(update={"samples_per_prompt": config.samples_of[name]})
        folder = Path(benchmark.name)
        sets.append(ProblemSet(benchmark.name, problems, reward, folder, sampling))
    if doubled := [name for name, count in Counter(s.name for s in sets).items() if count > 1]:
        raise ConfigError(
            "eval.benchmarks",
            f"{doubled[0]} is named twice, and both would be written to one folder.",
            "Name each once; rename a file that is called like a benchmark.",
        )
    return sets


def regrade_all(folder: Path, reward: str | None) -> dict[str, Regraded]:
    """Grade all answers stored below `folder` again, without a model.

    Args:
        folder: an evaluation's folder, or one that holds several.
        reward: grader; None takes the one that graded each before.

    Returns:
        What changed, by the name of each evaluation.

    Raises:
        DataError: no stored answers below `folder`.
        ConfigError: no such reward.
    """
    found: dict[str, Regraded] = {}
    for name, path in evaluation_folders(folder).items():
        grader = reward or grader_of(path)
        with AnswerPool(deadline_s=_GRADING_DEADLINE_S, reward=grader) as pool:
            found[name] = regrade(path, grader, pool.grade_many)
    return found


def measure(
    subject: Subject,
    problem_set: ProblemSet,
    *,
    config: EvalConfig,
    engine: Engine,
    output: Path,
    run_job: Callable[[EntropyJob], None],
) -> EvalSummary:
    """Answer, grade and summarise; continues what `output` holds of the same measurement.

    Args:
        subject: the model.
        problem_set: what it is asked.
        config: how to measure.
        engine: an engine that answers with the subject's weights.
        output: folder of the stage; results go to the set's folder below it.
        run_job: runs a job on the worker processes.

    Raises:
        DataError: nothing to answer.
        GenerationError: the engine died.
        LaunchError: the worker processes failed.
    """
    template = load_template(subject.template, subject.weights)
    output = output / problem_set.folder
    config = config.model_copy(
        update={"reward": problem_set.reward, "sampling": problem_set.sampling}
    )
    write_table(output, Kind.PROBLEMS, problem_set.problems)
    with AnswerPool(deadline_s=_GRADING_DEADLINE_S, reward=problem_set.reward) as pool:
        summary = evaluate(
            problem_set.problems,
            engine,
            template=template,
            config=config,
            output=output,
            grade=pool.grade_many,
        )
    if config.num_entropy_responses == 0:
        return summary
    run_job(
        EntropyJob(
            model=subject.model,
            model_folder=subject.weights,
            output=output,
            seed=subject.seed,
            generations=output,
            problems=output,
            template=subject.template,
            num_responses=config.num_entropy_responses,
            parallel=subject.parallel,
        )
    )
    measured = pl.read_parquet(output / ENTROPY_TABLE)
    columns = measured.select("problem_id", "sample_index", "mean_entropy")
    return fill_entropy(output, {(row[0], row[1]): row[2] for row in columns.iter_rows()})
