from pathlib import Path

import pytest

from megatron_reason.config.load import load_config
from megatron_reason.errors import ConfigError
from megatron_reason.pipeline.answering import with_servers
from megatron_reason.pipeline.plan import make_plan
from megatron_reason.pipeline.run_config import RunConfig

RECIPE = "examples/rehearsal/srft_7b.yaml"


def config(tmp_path, *overrides):
    settings = [f"run.dir={tmp_path}", "engine.start_timeout_s=20", *overrides]
    return load_config(Path(RECIPE), settings, RunConfig)


@pytest.fixture
def _second_component(tmp_path, monkeypatch):
    """A job with two components, and a program in srun's place that says that servers answer."""
    program = tmp_path / "bin" / "srun"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/bash\nwhile [ "$1" != --register ]; do shift; done; mkdir -p "$2"\n'
        'echo "http://node2:1" >"$2/node2.url"; exec sleep 60\n'
    )
    program.chmod(0o755)
    for name, value in (
        ("PATH", f"{program.parent}:/usr/bin:/bin"), ("SLURM_HET_SIZE", "2"), ("SLURM_JOB_ID", "9"),
        ("SLURM_RESTART_COUNT", "1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)


def test_in_any_other_job_the_run_is_as_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_HET_SIZE", raising=False)
    for cluster in ("local", "laptop"):
        settings = config(tmp_path, f"launch.cluster={cluster}")
        with with_servers(settings, [RECIPE]) as answered:
            assert answered is settings


@pytest.mark.usefixtures("_second_component")
def test_the_second_component_answers_and_each_attempt_has_a_folder_of_its_own(tmp_path):
    settings = config(tmp_path, "launch.cluster=laptop")
    with with_servers(settings, [RECIPE]) as answered:
        engine = answered.engine
        assert (engine.name, engine.num_servers) == ("vllm-server", 1)
        assert engine.servers_folder == str(settings.run.folder / "servers" / "9.1")
        # What was done in an earlier attempt stays done.
        other = engine.model_copy(update={"servers_folder": "elsewhere", "num_servers": 5})
        plans = [make_plan(answered), make_plan(answered.model_copy(update={"engine": other}))]
        assert plans[0] == plans[1]


@pytest.mark.usefixtures("_second_component")
@pytest.mark.parametrize(
    "engine",
    [("name=transformers",), ("name=vllm-server", "servers=['http://a:1']")],
    ids=["another program", "servers of its own"],
)
def test_an_engine_that_it_cannot_be_is_refused(tmp_path, engine):
    settings = config(tmp_path, "launch.cluster=laptop", *(f"engine.{one}" for one in engine))
    with (
        pytest.raises(ConfigError, match=r"second component[^$]*Set engine.name: vllm"),
        with_servers(settings, [RECIPE]),
    ):
        pass
