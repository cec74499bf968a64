from pathlib import Path

import pytest

from megatron_reason.errors import ConfigError
from tests.cli.test_app import mreason

ROOT = Path(__file__).parent.parent.parent
RECIPE = str(ROOT / "examples" / "oxa" / "full_7b.yaml")


def test_plan_says_what_a_layout_takes_and_which_others_fit():
    shown = mreason("plan", RECIPE, "--gpus", "32xH100-80", "--mfu", "0.4").stdout
    assert "oxa_full on 32 x H100-80" in shown
    assert "40% of peak" in shown
    assert "as configured: TP 4, PP 1, DP 8, 32768 tokens, recompute full" in shown
    assert shown.count("TP 4, PP") >= 2
    assert "do not fit" not in shown


def test_what_does_not_fit_comes_with_what_would():
    tight = ["--gpus", "8xA100-40", "--set", "train.parallel.recompute=none"]
    shown = mreason("plan", RECIPE, *tight).stdout
    assert "(too large)" in shown
    assert "do not fit into the 35 GiB" in shown
    assert "train.parallel.recompute: full" in shown


def test_an_engine_beside_the_trainer_is_counted_and_told_to_take_less():
    recipe = str(ROOT / "examples" / "baselines" / "grpo_7b.yaml")
    greedy = ["--set", "engine.gpu_memory_fraction=0.85"]
    shown = mreason("plan", recipe, "--gpus", "32xH100-80", *greedy).stdout
    assert "do not fit into the 73 GiB" in shown
    assert "engine.gpu_memory_fraction: 0.70  (72 GiB)" in shown
    large = str(ROOT / "examples" / "oxa" / "full_72b.yaml")
    alone = ["--set", "engine.tensor_parallel_size=1"]
    shown = mreason("plan", large, "--gpus", "128xH100-80", *alone).stdout
    assert "set engine.tensor_parallel_size: 4" in shown


def test_gpus_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="8xH100-80"):
        mreason("plan", RECIPE, "--gpus", "many")
