from importlib.util import find_spec

import pytest

from megatron_reason.config.cluster import ClusterConfig
from megatron_reason.errors import LaunchError
from megatron_reason.launch.nemo_run import launch_sweep
from tests.launch.sweeps import in_nemo_environment, swept

HAS_NEMO_RUN = find_spec("nemo_run") is not None


@pytest.mark.skipif(HAS_NEMO_RUN, reason="NeMo-Run is here")
def test_without_nemo_run_the_environment_is_named():
    with pytest.raises(LaunchError, match=r"pip install '\.\[nemo\]'"):
        launch_sweep("x", [("a", ["list", "methods"])], python="python", cluster=None)


@pytest.mark.skipif(not HAS_NEMO_RUN, reason="NeMo-Run is not in this environment: '.[nemo]'")
def test_a_cluster_without_an_account_is_refused():
    with pytest.raises(LaunchError, match="the cluster's file names none"):
        launch_sweep("x", [], python="python", cluster=ClusterConfig())


@in_nemo_environment
def test_a_sweep_on_this_machine_ends_in_one_report(tmp_path):
    swept(tmp_path)
