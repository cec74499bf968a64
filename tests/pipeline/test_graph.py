from pathlib import Path

import pytest

from megatron_reason.config.load import load_config
from megatron_reason.pipeline.graph import graph
from megatron_reason.pipeline.plan import make_plan
from megatron_reason.pipeline.run_config import RunConfig

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def config():
    overrides = ["variants.second={table: oxa_full_table, method: {name: oxa, preset: released}}"]
    return load_config(ROOT / "examples" / "oxa" / "full_7b.yaml", overrides, RunConfig)


def jobs(config, *, has_host):
    found = graph(config, make_plan(config), ["x.yaml"], has_host=has_host)
    return {job.name.removeprefix("oxa-full-7b."): job for job in found}


def test_curation_is_cut_where_other_machines_are_needed(config):
    found = jobs(config, has_host=False)
    assert [*found] == [
        "teacher-to-promote", "self-to-wrong", "wrong_scored-to-oxa_full_table", "eval-base",
        "train-oxa_full", "eval-oxa_full", "train-second", "eval-second", "report",
    ]  # fmt: skip
    assert [job.nodes for job in found.values()] == [4, 1, 4, 1, 4, 1, 4, 1, 1]
    assert found["self-to-wrong"].arguments == (
        "run", "x.yaml", "--from", "self", "--to", "wrong",
    )  # fmt: skip
    assert found["train-second"].arguments == ("run", "x.yaml", "--only", "train-second")


def test_variants_train_side_by_side_and_the_report_waits_for_all(config):
    found = jobs(config, has_host=False)

    def after(name):
        return [before.removeprefix("oxa-full-7b.") for before in found[name].after]

    table = ["wrong_scored-to-oxa_full_table"]
    assert after("train-oxa_full") == after("train-second") == table
    assert after("eval-second") == ["train-second"]
    assert after("eval-base") == []
    # What follows from another wait is left out.
    assert after("report") == ["eval-base", "eval-oxa_full", "eval-second"]


def test_a_cluster_with_machines_without_gpus_gets_the_work_that_needs_none(config):
    found = jobs(config, has_host=True)
    hosts = [name for name, job in found.items() if job.on_host]
    assert hosts == [
        "teacher-to-correct",
        "promote",
        "wrong",
        "suppress-to-oxa_full_table",
        "report",
    ]
    assert found["scored"].nodes == 4


def test_an_evaluation_has_room_for_one_copy_of_a_large_model(config):
    parallel = {"tensor_model_parallel_size": 4, "pipeline_model_parallel_size": 4}
    raw = config.model_dump(mode="json")
    raw["train"]["parallel"] |= parallel
    for variant in raw["variants"].values():
        variant["train"] = None
    large = jobs(RunConfig.model_validate(raw), has_host=False)
    assert large["eval-second"].nodes == 2
    assert large["eval-base"].nodes == 2
