"""Rank 0's side of the online loop: engine, graders and prompts, opened and closed together.

Not here: what becomes of an answer (`rollout`), and the updates (`online.py`).
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_reason.config.template import TemplateConfig
from megatron_reason.curation._rewriting import Rewriter
from megatron_reason.errors import CheckpointError, ConfigError, DataError, EngineDiedError
from megatron_reason.evaluation.prompts import prompts_of
from megatron_reason.generation.base import Engine
from megatron_reason.generation.open import open_engine
from megatron_reason.generation.templates import Template, load_template
from megatron_reason.logs import get_logger
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.rollout.collect import Collector
from megatron_reason.rollout.prompts import Admission, Prompt, PromptPool
from megatron_reason.rollout.source import Batch, Position, Source
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import Method, TrainState, UpdatePlan, build_method
from megatron_reason.schema.problems import heldout_problems, train_problems
from megatron_reason.schema.tables import Quarantine
from megatron_reason.training.data import TrainingSet
from megatron_reason.training.jobs import RolloutJob, TrainJob
from megatron_reason.training.monitor import Monitor
from megatron_reason.training.retelling import Retelling

_LOG = get_logger(__name__)
ROLLOUTS = "rollouts"
EVALUATIONS = "eval"


@dataclass
class Actor:
    """Makes batches, now or in the background."""

    source: Source
    engine: Engine
    monitor: Monitor | None
    background: ThreadPoolExecutor
    sleeps: bool
    """Whether the engine gives its memory back during the updates."""
    _ahead: Future[Batch] | None = None
    _death: EngineDiedError | None = None
    """Of an engine that could not go to sleep."""

    def batch(self, position: Position, *, version: int) -> Batch:
        """The next batch: the one begun ahead, or one made now."""
        if self._ahead is None:
            return self.source.next(position, version=version)
        batch, self._ahead = self._ahead.result(), None
        return batch

    def go_ahead(self, position: Position, *, version: int) -> None:
        """Begin the batch at `position` in the background."""
        self._ahead = self.background.submit(self.source.next, position, version=version)

    def resume(self, batch: str) -> None:
        """Have `batch` be what a run before this one had begun ahead, as `made_ahead` told it.

        Raises:
            CheckpointError: another version made it.
        """
        done: Future[Batch] = Future()
        try:
            done.set_result(Batch.from_json(batch))
        except ValueError as error:
            raise CheckpointError(
                "rollouts made ahead",
                f"those of the checkpoint cannot be read: {error}",
                "Go on with the version that wrote them, or remove the checkpoint's folder.",
            ) from error
        self._ahead = done

    def made_ahead(self) -> str:
        """The batch begun ahead, once the engine is idle, as JSON; empty if there is none."""
        return "" if self._ahead is None else self._ahead.result().to_json()

    def wait(self) -> None:
        """Until the engine is idle.

        Its death in the background leaves it started again, with older weights, and no batch: the
        weights that began the batch are gone, and those of the next push make it anew.

        Raises:
            ReasonError: what else the batch in the background could not go on with.
        """
        if self._ahead is None:
            return
        try:
            self._ahead.result()
        except EngineDiedError as error:
            self._ahead = None
            self.engine.restart(error)

    def rest(self) -> None:
        """The engine is not needed for a while; one that dies now is left for `rouse`."""
        if not self.sleeps:
            return
        try:
            self.engine.sleep()
        except EngineDiedError as error:
            self.engine.close()
            self._death = error

    def rouse(self) -> None:
        """The engine is needed again; one that died meanwhile is started with older weights."""
        death, self._death = self._death, None
        if death is None and not self.engine.is_healthy():
            death = EngineDiedError(
                "rollout engine", "it died or hung during the updates.", "Look into its log."
            )
        if death is None and self.sleeps:
            try:
                self.engine.wake()
            except EngineDiedError as error:
                death = error
        if death is not None:
            self.engine.restart(death)

    def measure(self, update: int) -> dict[str, float]:
        """What the monitor finds; nothing without one."""
        return {} if self.monitor is None else self.monitor.measure(update)


@contextmanager
def acting(
    job: TrainJob, rollout: RolloutJob, *, weights: Path, vocabulary: int
) -> Iterator[Actor]:
    """Open engine and graders; tokenise prompts and set those aside that cannot be used.

    Args:
        job: the training.
        rollout: how rollouts are made.
        weights: Hugging Face folder that the engine begins with.
        vocabulary: embeddings of the model.

    Raises:
        ReasonError: prompts, demonstrations, engine or graders that cannot be used, or settings
            that exclude each other.
    """
    method, settings = build_method(job.method), rollout.settings
    if rollout.engine.sleep_mode and settings.steps_ahead:
        raise ConfigError(
            "engine.sleep_mode",
            "the engine cannot sleep during the updates: with rollout.steps_ahead 1 it answers the "
            "next prompts then.",
            "Set engine.sleep_mode: false, or rollout.steps_ahead: 0.",
        )
    template = load_template(job.template or TemplateConfig(), job.model_folder)
    data = _table(job, method, template, vocabulary)
    joins = joins_demos(method)
    prompts = _prompts(job, rollout, template, data if joins else None)
    _check_monitored(rollout, template)

    def stored(plan: UpdatePlan, consumed: Mapping[Role, int]) -> list[TokenizedSample]:
        return [] if data is None else data.next_samples(plan, consumed, job.seed)

    with ExitStack() as stack:
        log_folder = job.output / "logs"
        # The log-probs of what was sampled from, which the trainer's are compared with.
        shared = rollout.engine.beside_a_trainer()
        told = shared.model_copy(update={"logprobs": "sampler"})
        engine = stack.enter_context(
            closing(open_engine(weights, told, dtype=job.model.dtype, log_folder=log_folder))
        )  # fmt: skip
        graders = stack.enter_context(
            AnswerPool(settings.reward_workers, settings.reward_deadline_s, reward=settings.reward)
        )
        graders.warm_up()
        monitor = stack.enter_context(_monitoring(job, rollout, engine, graders, template))
        assert job.train.updates is not None, "a run that counts epochs was refused at load"
        source = Source(
            method=method,
            pool=PromptPool(prompts, settings.order, job.seed),
            collector=Collector(engine, graders, template),
            settings=settings,
            joins_demos=joins,
            stored=stored,
            total=job.train.updates,
            seed=job.seed,
            folder=job.output / ROLLOUTS,
            retell=_retelling(rollout, engine, template, graders, data),
        )
        background = stack.enter_context(ThreadPoolExecutor(1, "ahead"))
        yield Actor(source, engine, monitor, background, sleeps=told.sleep_mode)


def joins_demos(method: Method[Any]) -> bool:
    """Whether each prompt brings a demonstration of its own, rather than an update any of them."""
    plan = method.plan(TrainState(0, 1))
    return Role.DEMO in method.required().roles and Role.DEMO not in plan.counts


def _table(
    job: TrainJob, method: Method[Any], template: Template, vocabulary: int
) -> TrainingSet | None:
    if not method.required().roles - {Role.ROLLOUT}:
        return None
    if job.table is None:
        raise ConfigError(
            f"train {job.output.name}",
            f"method '{method.config.name}' learns from demonstrations, and no table is given.",
            "Give the variant a 'table' of tokens.",
        )
    data = TrainingSet.read(job.table, method)
    data.check_ids(vocabulary)
    data.check_template(template.hash)
    return data


def _prompts(
    job: TrainJob, rollout: RolloutJob, template: Template, data: TrainingSet | None
) -> list[Prompt]:
    admission = Admission(
        template=template,
        longest_prompt=rollout.engine.max_model_len - rollout.settings.max_tokens,
        demos=None if data is None else data.demos_by_problem(),
    )
    problems = train_problems(rollout.problems)
    with Quarantine(job.output) as aside:
        prompts = admission.admit(problems, aside)
    _LOG.info("%d of %d problems are asked; set aside: %s", len(prompts), len(problems),
              aside.counts() or "none")  # fmt: skip
    return prompts


def _retelling(
    rollout: RolloutJob, engine: Engine, template: Template, graders: AnswerPool,
    data: TrainingSet | None,
) -> Retelling | None:  # fmt: skip
    """Raises a DataError if a demonstration's problem is not among those that are answered."""
    settings = rollout.settings.rewrite
    if settings is None or data is None:
        return None
    problems = {problem.problem_id: problem for problem in train_problems(rollout.problems)}
    demos = data.demos_by_problem()
    if unknown := demos.keys() - problems.keys():
        raise DataError(
            "rollout.rewrite",
            f"{len(unknown)} problems with demonstrations are not in the table of problems, the "
            f"first {min(unknown)}.",
            "Let rollout.problems name the stage that the demonstrations come from.",
        )
    answered = {demo.sample_id: problems[name] for name, some in demos.items() for demo in some}
    return Retelling(Rewriter(engine, template, graders, settings, seed=0), answered)


def _check_monitored(rollout: RolloutJob, template: Template) -> None:
    """Raises a DataError for held-out problems without room for an answer, before any is asked."""
    settings = rollout.settings.monitor
    if settings is not None and rollout.monitored is not None:
        problems = heldout_problems(rollout.monitored).head(settings.max_problems)
        longest = rollout.engine.max_model_len
        prompts_of(problems, template, max_model_len=longest, place="rollout.monitor")


@contextmanager
def _monitoring(
    job: TrainJob, rollout: RolloutJob, engine: Engine, graders: AnswerPool, template: Template
) -> Iterator[Monitor | None]:
    settings = rollout.settings.monitor
    if settings is None or rollout.monitored is None:
        yield None
        return
    with ExitStack() as stack:
        if settings.reward != graders.reward:
            graders = stack.enter_context(
                AnswerPool(rollout.settings.reward_workers, rollout.settings.reward_deadline_s,
                           reward=settings.reward)
            )  # fmt: skip
        yield Monitor(
            settings=settings,
            problems=heldout_problems(rollout.monitored),
            engine=engine,
            graders=graders,
            template=template,
            max_tokens=rollout.settings.max_tokens,
            folder=job.output / EVALUATIONS / settings.table,
        )
