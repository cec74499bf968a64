"""Small runs for the pipeline's tests: real stages, and two that count how often they ran."""

from pathlib import Path
from typing import ClassVar, Literal

import yaml

from megatron_reason.curation.base import STAGES, Stage, StageConfig, StageResult, stage
from megatron_reason.errors import DataError
from megatron_reason.pipeline.run_config import RunConfig


class CountConfig(StageConfig):
    stage: Literal["count_for_tests"] = "count_for_tests"
    """Kind of stage."""
    table: str | None = None
    """Stage whose count is continued."""
    text: str = ""
    """Something to change."""
    fails: bool = False
    """Fail after having written."""

    def inputs(self):
        return () if self.table is None else (self.table,)


if "count_for_tests" not in STAGES.names():

    @stage
    class Count(Stage[CountConfig]):
        """Writes how many rows came in, plus one; remembers that it ran."""

        config_class = CountConfig
        ran: ClassVar[list[str]] = []

        def run(self, context):
            self.ran.append(self.config.name)
            before = [int((folder / "count").read_text()) for folder in context.inputs.values()]
            (context.output / "count").write_text(str(sum(before) + 1))
            if self.config.fails:
                raise DataError(f"stage '{self.config.name}'", "it was told to fail.", "Do not.")
            return StageResult(sum(before) + 1, {"seen": len(before)})


def ran() -> list[str]:
    """Names of the counting stages that ran since the last call."""
    names = STAGES.get("count_for_tests").ran
    seen = list(names)
    names.clear()
    return seen


def settings(folder: Path, model_folder: Path, **changes) -> RunConfig:
    """A run of three counting stages in a row: a, b reads a, c reads b."""
    raw = {
        "run": {"name": "run", "dir": str(folder / "runs")},
        "model": {"path": str(model_folder)},
        "curate": [
            {"stage": "count_for_tests", "name": "a"},
            {"stage": "count_for_tests", "name": "b", "table": "a"},
            {"stage": "count_for_tests", "name": "c", "table": "b"},
        ],
    }
    return RunConfig.model_validate(raw | changes)


def variants(config: RunConfig) -> RunConfig:
    """The same with two variants and an evaluation, for plans."""
    more = yaml.safe_load("""
        train: {updates: 3, optim: {lr: 1.0e-4}}
        variants:
          one: {table: b, method: {name: sft}}
          two: {table: c, method: {name: oxa}}
        eval: {table: a}
    """)
    return RunConfig.model_validate(config.model_dump(exclude={"train", "eval"}) | more)
