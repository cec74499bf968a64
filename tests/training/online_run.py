"""Live loops on a tiny random model, for the tests of this folder.

Several runs share one process and one rank: `spawn(run_all, 1, jobs)`.
"""

import importlib
import json
import pickle
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.rollout import RolloutSection
from megatron_reason.config.sampling import EngineConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.config.tracking import TrackingConfig
from megatron_reason.config.train import BatchConfig, CheckpointConfig, OptimConfig, TrainConfig
from megatron_reason.schema.batch import TokenizedSample
from megatron_reason.schema.method import METHODS, TrainState
from megatron_reason.schema.records import Message, Problem
from megatron_reason.schema.tables import Kind, write_table
from megatron_reason.training.jobs import RolloutJob, TrainJob

NUM_PROBLEMS = 10
MAX_TOKENS = 6


def make_data(folder: Path, sizes: Mapping[str, int] | None = None) -> None:
    """A model in `model`, problems in `problems`, demonstrations of all but one in `demos`."""
    from megatron_reason.generation.templates import load_template
    from tools.make_tiny_model import make_tiny_model

    model = make_tiny_model("Qwen2ForCausalLM", folder / "model", num_hidden_layers=2,
                            tie_word_embeddings=True, **(sizes or {}))  # fmt: skip
    problems = [
        Problem((Message("user", f"{n}+{n + 1}="),), str(2 * n + 1), "sums",
                split="heldout" if n >= NUM_PROBLEMS else "train")
        for n in range(NUM_PROBLEMS + 3)
    ]  # fmt: skip
    write_table(folder / "problems", Kind.PROBLEMS, problems)
    template = load_template(TemplateConfig(), model)
    rows: list[dict[str, Any]] = []
    for problem in problems[1:NUM_PROBLEMS]:
        prompt = template.prompt_ids(problem.messages)
        response = template.response_ids(f"so {problem.answer}")
        rows.append(
            {"sample_id": f"d{problem.answer}", "problem_id": problem.problem_id, "role": "demo",
             "ids": [*prompt, *response], "num_prompt_tokens": len(prompt),
             "template_hash": template.hash}
        )  # fmt: skip
    import polars as pl

    write_table(folder / "demos", Kind.TOKENS, pl.DataFrame(rows))


def make_job(
    folder: Path, name: str, method: str, settings: Mapping[str, Any], *, updates: int = 3,
    rollout: Mapping[str, Any] | None = None, parallel: Mapping[str, Any] | None = None,
    every: int = 100, **changes: Any,
) -> TrainJob:  # fmt: skip
    """A short live run, written to `folder/name`."""
    section = RolloutSection(
        **{
            "problems": "problems", "reward": "parity_for_tests", "max_tokens": MAX_TOKENS,
            "reward_workers": 1, **(rollout or {}),
        }
    )  # fmt: skip
    fields: dict[str, Any] = {
        "model": ModelConfig(path="tiny", dtype="float32"),
        "model_folder": folder / "model",
        "output": folder / name,
        "seed": 3,
        "plugins": ("tests.rollout.rewards_for_tests",),
        "method": METHODS.get(method).config_class(**settings),
        "train": TrainConfig(
            updates=updates,
            batch=BatchConfig(max_tokens_per_microbatch=160),
            optim=OptimConfig(lr=1e-2, schedule="constant", warmup_fraction=0),
            parallel=ParallelConfig(**(parallel or {})),
            checkpoint=CheckpointConfig(every=every),
        ),
        "table": folder / "demos",
        "rollout": RolloutJob(
            settings=section,
            problems=folder / "problems",
            monitored=folder / "problems",
            engine=EngineConfig(name="transformers", max_model_len=64, max_num_seqs=32),
        ),
        "template": TemplateConfig(),
        "track": TrackingConfig(sinks=()),
    }
    return TrainJob(**(fields | changes))


def run_all(
    rank: int, world_size: int, jobs: Sequence[TrainJob], watched: Collection[str] = ()
) -> None:
    """Run `jobs` one after the other on these ranks; what one could not go on with is written.

    Of those whose folders' names are `watched`, the weights before each update are kept, too.
    """
    from megatron.core import parallel_state

    from megatron_reason.engine.topology import init_topology
    from megatron_reason.errors import ReasonError
    from megatron_reason.generation.hf_engine import HFEngine
    from megatron_reason.training import duties, online
    from megatron_reason.training.exporting import exported

    for job in jobs:
        for module in job.plugins:
            importlib.import_module(module)
        job.output.mkdir(parents=True, exist_ok=True)
        topology = init_topology(job.train.parallel, seed=job.seed)
        trainable = duties.trainable_of(job, topology)
        assert job.rollout is not None
        original, sleep = online.update, HFEngine.sleep
        online.update = _recording(original, job.output)
        if job.output.name in watched:
            online.update = _exporting(online.update, job)
        if job.rollout.settings.steps_ahead:
            online.update = _awaiting_the_next_rollouts(online.update, job.output)
        HFEngine.sleep = _counting(sleep, job.output)
        try:
            online.train_online(job, job.rollout, trainable)
            exported(job, trainable, job.output / "huggingface").write()
        except ReasonError as error:
            (job.output / f"error_{rank}.txt").write_text(str(error), encoding="utf-8")
        finally:
            online.update, HFEngine.sleep = original, sleep
            parallel_state.destroy_model_parallel()
    del world_size


def _counting(sleep: Any, output: Path) -> Any:
    """`sleep`, which also leaves a mark each time."""

    def counted(engine: Any) -> None:
        with (output / "slept").open("a", encoding="utf-8") as stream:
            stream.write("z")
        sleep(engine)

    return counted


def _exporting(update: Any, job: TrainJob) -> Any:
    """`update`, which also writes the weights that it is about to change."""
    from megatron_reason.training.exporting import exported

    def exporting(trainable: Any, method: Any, samples: Any, state: Any, *rest: Any) -> Any:
        exported(job, trainable, weights_before(job.output, state.update)).write()
        return update(trainable, method, samples, state, *rest)

    return exporting


def _recording(update: Any, output: Path) -> Any:
    """`update`, which also keeps the batches it was given and what it said of them."""

    def recorded(trainable: Any, method: Any, samples: Any, state: Any, *rest: Any) -> Any:
        found = update(trainable, method, samples, state, *rest)
        if trainable.topology.rank == 0:
            with (output / f"update_{state.update}.pickle").open("wb") as stream:
                pickle.dump((list(samples), found, state), stream)
        return found

    return recorded


def _awaiting_the_next_rollouts(update: Any, output: Path) -> Any:
    """`update`, which the first time does not end before the next step's rollouts are there.

    It leaves a mark if they were: they are made while this runs, or never.
    """

    def awaiting(trainable: Any, method: Any, samples: Any, state: Any, *rest: Any) -> Any:
        found = update(trainable, method, samples, state, *rest)
        written = output / "rollouts" / f"step_{state.update + 2:06d}.jsonl"
        deadline = time.monotonic() + 60
        while state.update == 0 and not written.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        if state.update == 0 and written.exists():
            (output / "overlapped").touch()
        return found

    return awaiting


def metrics(output: Path) -> list[dict[str, float]]:
    """Lines of `metrics.jsonl`."""
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def rollouts(output: Path, step: int) -> list[dict[str, Any]]:
    """Rows of a step's rollouts."""
    path = output / "rollouts" / f"step_{step:06d}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def one_update(output: Path, update: int) -> tuple[list[TokenizedSample], dict[str, float]]:
    """Samples of an update, and its own metrics."""
    samples, found, _ = _recorded(output, update)
    return samples, found


def state_of(output: Path, update: int) -> TrainState:
    """What the method was told of the run's progress at an update."""
    return _recorded(output, update)[2]


def weights_before(output: Path, update: int) -> Path:
    """Hugging Face folder of the weights that an update of a watched run changed."""
    return output / f"before_{update}"


def _recorded(
    output: Path, update: int
) -> tuple[list[TokenizedSample], dict[str, float], TrainState]:
    with (output / f"update_{update}.pickle").open("rb") as stream:
        return pickle.load(stream)
