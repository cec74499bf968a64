import re
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_reason.config.load import load_config
from megatron_reason.launch.clusters import load_cluster
from megatron_reason.pipeline.run_config import RunConfig

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = sorted(path for path in (ROOT / "slurm").glob("*.sh") if path.name != "job.sh")
ASKED = {
    "curate_array", "dr_dft_7b", "eval", "grpo_7b", "lese_1_5b", "lese_7b", "oxa_1_5b", "oxa_32b",
    "oxa_72b", "oxa_7b", "serve", "srft_7b",
}  # fmt: skip


def header(path):
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", path.read_text(), re.MULTILINE)
    return dict(lines)


def test_there_is_a_script_for_each_method():
    assert {path.stem for path in SCRIPTS} == ASKED


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_asks_for_what_its_recipe_takes_and_comes_back(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    found = header(path)
    assert found.keys() >= {"requeue", "signal", "open-mode", "time", "output"}
    assert ("exclusive" in found) == (path.stem != "serve"), "servers share nodes"
    assert not found.keys() & {"partition", "account", "qos"}, "those are the cluster's file's"
    recipe = re.search(r"RECIPE:-([^}]*)", path.read_text())
    if recipe is None:
        return
    config = load_config(ROOT / recipe[1], [], RunConfig)
    assert int(found["nodes"]) == config.launch.nodes
    assert int(found["gpus-per-node"]) == config.launch.processes


def test_scripts_and_clusters_agree_on_the_time_to_save(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in SCRIPTS:
        assert header(path)["signal"] == f"B:USR1@{load_cluster('h100').save_before_s}"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    files = [*SCRIPTS, ROOT / "slurm" / "job.sh", *(ROOT / "tools").glob("*.sh")]
    subprocess.run(["shellcheck", "-x", *map(str, files)], cwd=ROOT, check=True)


def test_outside_a_job_a_script_says_how_to_submit_it(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    done = subprocess.run(
        ["bash", "slurm/oxa_7b.sh"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "submit it with sbatch" in done.stderr


def test_a_cluster_without_a_file_is_named_within_a_second(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CLUSTER", "moon")
    done = subprocess.run(
        ["bash", "slurm/oxa_7b.sh"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "there is no slurm/clusters/moon.yaml" in done.stderr
