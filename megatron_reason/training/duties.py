"""The three jobs of a worker: train, run a curation stage on ranks, measure entropy."""

from pathlib import Path

import polars as pl
from torch import nn

from megatron_reason.curation.base import StageContext, build_stage
from megatron_reason.engine.checkpoint import load_weights
from megatron_reason.engine.checkpoint_folder import best_of
from megatron_reason.engine.prepass import batch_for, score_sequences
from megatron_reason.engine.startup import Trainable, load_model, make_trainable, parallel_world
from megatron_reason.errors import GenerationError
from megatron_reason.files import atomic_path, write_json
from megatron_reason.generation.base import Engine
from megatron_reason.generation.templates import Template, load_template
from megatron_reason.logs import get_logger, progress
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import Frozen, build_method
from megatron_reason.schema.records import Finish, Message
from megatron_reason.schema.tables import Kind, read_table
from megatron_reason.schema.topology import Topology
from megatron_reason.training.exporting import exported
from megatron_reason.training.jobs import EntropyJob, Job, StageJob, TrainJob
from megatron_reason.training.loop import CHECKPOINTS
from megatron_reason.training.offline import train
from megatron_reason.training.online import train_online

ENTROPY_TABLE = "entropy.parquet"
HUGGINGFACE = "huggingface"
BEST = "huggingface_best"
STAGE_RESULT = "result.json"
_LOG = get_logger(__name__)


def run_job(job: Job) -> None:
    """Do `job` on this rank, together with the other ranks."""
    match job:
        case TrainJob():
            _train(job)
        case StageJob():
            _run_stage(job)
        case EntropyJob():
            _measure_entropy(job)


def _train(job: TrainJob) -> None:
    multiple = job.model.token_multiple
    with parallel_world(job.train.parallel, seed=job.seed, token_multiple=multiple) as topology:
        trainable = trainable_of(job, topology)
        is_done = (
            train(job, trainable)
            if job.rollout is None
            else train_online(job, job.rollout, trainable)
        )
        if is_done:
            exported(job, trainable, job.output / HUGGINGFACE).write()
            _export_best(job, trainable)


def trainable_of(job: TrainJob, topology: Topology) -> Trainable:
    """The model of `job` on this rank, with the reference and the moments its method asks for."""
    stage = load_model(job.model, job.model_folder, job.train.parallel, topology)
    return make_trainable(
        stage, job.train.optim, topology, _reference(job, topology),
        optimizer_states=build_method(job.method).required().optimizer_states,
    )  # fmt: skip


def _export_best(job: TrainJob, trainable: Trainable) -> None:
    """The best checkpoint's weights, where the run was told to keep one."""
    keep = job.train.checkpoint.keep
    if keep.best is None:
        return
    best = best_of(job.output / CHECKPOINTS, keep)
    if best is None:
        _LOG.warning(
            "no checkpoint has a value of '%s', so there is no best one: let "
            "train.checkpoint.every be a multiple of where it is measured", keep.best,
        )  # fmt: skip
        return
    load_weights(trainable, best)
    exported(job, trainable, job.output / BEST).write()
    _LOG.info("%s by '%s' is in %s", best.name, keep.best, job.output / BEST)


def _reference(job: TrainJob, topology: Topology) -> nn.Module | None:
    """The model as it was before training, where the method compares with it."""
    if not build_method(job.method).required().frozen & {Frozen.REF_LOGPROB, Frozen.REF_HIDDEN}:
        return None
    stage = load_model(job.model, job.model_folder, job.train.parallel, topology)
    return stage.requires_grad_(False).eval()


def _run_stage(job: StageJob) -> None:
    stage = build_stage(job.stage)
    multiple = job.model.token_multiple
    with parallel_world(stage.parallel(), seed=job.seed, token_multiple=multiple) as topology:
        context = StageContext(
            output=job.output,
            inputs=job.inputs,
            model=job.model,
            model_folder=job.model_folder,
            template=job.template,
            seed=job.seed,
            open_engine=_no_engine,
            topology=topology,
        )
        result = stage.run(context)
        if topology.rank == 0:
            write_json(
                job.output / STAGE_RESULT,
                {"num_rows": result.num_rows, "counts": dict(result.counts)},
            )


def _measure_entropy(job: EntropyJob) -> None:
    generations = read_table(job.generations, Kind.GENERATIONS)
    problems = read_table(job.problems, Kind.PROBLEMS)
    chosen = _spread(generations, job.num_responses)
    template = load_template(job.template, job.model_folder)
    messages = dict(zip(problems["problem_id"], problems["messages"], strict=True))
    rows = chosen.to_dicts()
    samples = [_tokenized(row, messages[row["problem_id"]], template) for row in rows]
    multiple = job.model.token_multiple
    with parallel_world(job.parallel, seed=job.seed, token_multiple=multiple) as topology:
        stage = load_model(job.model, job.model_folder, job.parallel, topology)
        batch = batch_for(samples, job.max_tokens_per_microbatch, topology)
        with progress("entropy", len(samples), "sequences", shown=topology.rank == 0) as bar:
            scores = score_sequences(stage, samples, batch, topology, on_done=bar.advance)
        if topology.rank == 0:
            measured = chosen.select("problem_id", "sample_index").with_columns(
                mean_entropy=pl.Series([s.entropy_sum / s.num_tokens for s in scores])
            )
            with atomic_path(job.output / ENTROPY_TABLE) as path:
                measured.write_parquet(path)


def _spread(generations: pl.DataFrame, count: int) -> pl.DataFrame:
    """First sample of every problem, then the second of every problem, up to `count` in all."""
    answered = generations.filter(pl.col("num_tokens") > 0)
    return answered.sort("sample_index", "problem_id").head(count)


def _tokenized(
    row: dict[str, str], messages: list[dict[str, str]], template: Template
) -> TokenizedSample:
    prompt = template.prompt_ids([Message(**turn) for turn in messages])
    finished = row["finish"] != Finish.LENGTH
    return TokenizedSample(
        sample_id=f"{row['problem_id']}/{row['sample_index']}",
        role=Role.DEMO,
        ids=(*prompt, *template.generated_ids(row["response"], finished=finished)),
        num_prompt_tokens=len(prompt),
    )


def _no_engine(folder: Path) -> Engine:
    raise GenerationError(
        str(folder),
        "a stage that runs on ranks asked for a generation engine.",
        "Generate in a stage of its own, with runs_on = 'host'.",
    )
