"""Builds what stages need, without a pipeline."""

from dataclasses import replace
from pathlib import Path

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.curation.base import StageContext
from megatron_reason.schema.records import Finish, Message, Origin, Problem, Sample
from megatron_reason.schema.tables import Kind, write_table


def context(
    output: Path, inputs=None, *, model_folder=Path("none"), seed=0, open_engine=None, template=None
) -> StageContext:
    def no_engine(folder):
        raise AssertionError(f"no engine was expected for {folder}")

    return StageContext(
        output=output,
        inputs=inputs or {},
        model=ModelConfig(path=str(model_folder)),
        model_folder=model_folder,
        template=template or TemplateConfig(),
        seed=seed,
        open_engine=open_engine or no_engine,
    )


def sample(number=0, *, problem=None, response="It is 2.", answer="2", split="train", **filled):
    """A row of a samples table; `filled` overrides what later stages fill in."""
    question = f"Problem {number if problem is None else problem}?"
    row = Sample.of(
        Problem((Message("user", question),), answer, "test", split=split),
        response,
        finish=filled.pop("finish", Finish.GIVEN),
        origin=Origin.TEACHER,
        generator="test",
        index=number,
    )
    return replace(row, **filled)


def write_samples(folder: Path, rows) -> Path:
    write_table(folder, Kind.SAMPLES, rows)
    return folder
