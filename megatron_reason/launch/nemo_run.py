"""Runs of a sweep as one NeMo-Run experiment, on this machine or as jobs of a cluster.

Needs NeMo-Run, whose requirements clash with vLLM's: an environment of its own submits, and the
`python` of the training environment runs. Each run takes one node; runs over several are submitted
with `mreason run --on`. Not here: which runs there are (`config/sweep.py`).
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_reason.config.cluster import ClusterConfig
from megatron_reason.errors import LaunchError


def launch_sweep(
    name: str, commands: Sequence[tuple[str, Sequence[str]]], *, python: str,
    cluster: ClusterConfig | None,
) -> None:  # fmt: skip
    """Do all runs, side by side on a cluster and one after the other here; wait for their end.

    How each ended is what its run folder says.

    Args:
        name: what the experiment is called.
        commands: name of each run, and what follows `mreason`.
        python: interpreter of the training environment.
        cluster: where jobs go; None for this machine.

    Raises:
        LaunchError: NeMo-Run is not in this environment.
    """
    run = _nemo_run()
    executor = run.LocalExecutor() if cluster is None else _slurm(run, cluster, python)
    with run.Experiment(name) as experiment:
        for run_name, words in commands:
            line = shlex.join([python, "-m", "megatron_reason.cli.app", *words])
            script = f"cd {shlex.quote(str(Path.cwd()))}\n{line}\n"
            experiment.add(
                run.Script(inline=script), executor=executor.clone(), name=run_name,
                tail_logs=False,
            )  # fmt: skip
        experiment.run(sequential=cluster is None, detach=False)


def _slurm(run: Any, cluster: ClusterConfig, python: str) -> Any:  # noqa: ANN401 - NeMo-Run's
    if cluster.account is None:
        raise LaunchError(
            "account", "the cluster's file names none, and NeMo-Run cannot do without.",
            "Give it there; any word will do where accounts are not checked.",
        )  # fmt: skip
    return run.SlurmExecutor(
        account=cluster.account,
        partition=cluster.partition,
        nodes=1,
        ntasks_per_node=1,
        gpus_per_node=cluster.gpus_per_node or None,
        exclusive=cluster.exclusive or None,
        time=cluster.time,
        container_image=cluster.container,
        container_mounts=list(cluster.mounts),
        # With a folder here NeMo-Run writes the script to one place and submits it from another.
        tunnel=run.LocalTunnel(job_dir=""),
        packager=run.Packager(),
        env_vars={"PATH": f"{Path(python).parent}:$PATH", **cluster.environment},
        poll_estimated_start_time=False,
    )


def _nemo_run() -> Any:  # noqa: ANN401 - a module without types
    try:
        import nemo_run
    except ImportError as error:
        raise LaunchError(
            "nemo_run",
            f"NeMo-Run cannot be imported by {sys.executable}: {error}.",
            "Make an environment for it: python -m venv .venv-nemo && .venv-nemo/bin/pip install "
            "'.[nemo]', and call .venv-nemo/bin/mreason sweep.",
        ) from error
    # Without a folder of the project's it writes into the home directory.
    os.environ.setdefault("NEMORUN_HOME", str(Path("runs", "nemo").resolve()))
    return nemo_run
