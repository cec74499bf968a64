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


def test_gpus_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="8xH100-80"):
        mreason("plan", RECIPE, "--gpus", "many")
