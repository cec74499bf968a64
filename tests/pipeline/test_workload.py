from pathlib import Path

import pytest

from megatron_reason.config.launch import LaunchConfig
from megatron_reason.config.load import load_config
from megatron_reason.errors import ConfigError
from megatron_reason.pipeline.estimate import propose
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.pipeline.workload import (
    engine_objection,
    machine_of,
    trainings,
    usable_on,
)

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def of(name):
    config = load_config(EXAMPLES / name, [], RunConfig)
    found = trainings(config, ranks=32, machine=machine_of("32xH100-80"))
    return {training.variant: training for training in found}


def test_the_paper_s_updates_follow_from_its_selections():
    # 50,000 of each role, 128 of each an update, 6 epochs: the paper's 390 an epoch, rounded up.
    assert of("oxa/full_7b.yaml")["oxa_full"].updates == 2344
    assert of("oxa/mle_7b_150k.yaml")["oxa_mle"].updates == 2344


def test_an_update_of_oxa_is_256_sequences_and_a_reference_is_counted():
    full = of("oxa/full_7b_rlvr.yaml")
    assert full["oxa_full"].work.tokens_per_update == 256 * full["oxa_full"].work.mean_length
    assert full["oxa_full"].work.longest == 32767
    rl = full["rl"]
    assert rl.updates == 1200
    assert rl.extras.has_reference
    assert not full["oxa_full"].extras.has_reference
    assert rl.extras.engine is not None
    assert rl.extras.engine.taken == 0.5 * 80 * 2**30
    assert rl.layout.dp == 8


@pytest.mark.parametrize("folder", ["baselines", "dr", "lese", "oxa", "srft"])
def test_every_recipe_fits_on_its_gpus_with_its_engine(folder):
    """An engine beside a trainer, and weights that one GPU cannot hold, included."""
    recipes = sorted((EXAMPLES / folder).glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        _assert_fits(load_config(recipe, [], RunConfig))


def _assert_fits(config):
    size = config.launch.world_size
    machine = machine_of(f"{size}xH100-80")
    assert engine_objection(config, machine) is None
    for found in trainings(config, ranks=size, machine=machine):
        asked = propose(found.sizes, found.layout, found.work, machine, found.extras, mfu=0.4)
        assert asked.fits, f"{config.run.name}: {found.variant}"


def test_only_a_run_that_draws_text_is_asked_for_its_engine_and_that_lives_on_one_node():
    recipe = EXAMPLES / "oxa" / "full_7b_rlvr.yaml"
    wide = load_config(recipe, ["engine.tensor_parallel_size=4"], RunConfig)
    assert engine_objection(wide, machine_of("8xH100-80")) is None
    found = engine_objection(wide, machine_of("2xH100-80"))
    assert found is not None
    assert "4 is more than the 2 GPUs of a node" in found
    silent = wide.model_copy(
        update={
            "eval": None,
            "curate": tuple(stage for stage in wide.curate if not stage.draws_text),
            "variants": {"oxa_full": wide.variants["oxa_full"]},
        }
    )
    assert engine_objection(silent, machine_of("2xH100-80")) is None


@pytest.mark.parametrize("text", ["8", "x", "0xH100-80", "8xH100", "eightxH100-80"])
def test_gpus_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="A100-40, A100-80, H100-80, H200-141"):
        machine_of(text)


def test_the_cluster_says_which_gpu(monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)
    assert usable_on(LaunchConfig()) == float("inf")
    assert 70e9 < usable_on(LaunchConfig(cluster="h100")) < 80e9
