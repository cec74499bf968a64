"""Who answers the prompts of a run: the job's second component, where it has one.

Not here: starting servers (`launch/servers.py`), and asking them (`generation/server_engine.py`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from megatron_reason.errors import ConfigError
from megatron_reason.launch.clusters import load_cluster
from megatron_reason.launch.servers import Component, servers
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.pipeline.workers import LOCAL


@contextmanager
def with_servers(config: RunConfig, command: Sequence[str]) -> Iterator[RunConfig]:
    """Start a server for each task of the job's second component while the block runs.

    Args:
        config: the run.
        command: its file and overrides, as `mreason serve` takes them.

    Yields:
        The run with an engine that asks those servers; `config` itself in any other job, or in
        none.

    Raises:
        ConfigError: a second component, and an engine that it cannot be.
        LaunchError: the servers do not start.
    """
    component = None if config.launch.cluster == LOCAL else Component.read()
    if component is None:
        yield config
        return
    engine = config.engine
    if engine.name == "transformers" or engine.servers or engine.servers_folder:
        raise ConfigError(
            "engine",
            f"this job's second component is to answer with vLLM, and the engine is '{engine.name}'"
            + (" with servers of its own." if engine.name == "vllm-server" else "."),
            "Set engine.name: vllm without servers, or submit the job without a second component.",
        )
    cluster = load_cluster(config.launch.cluster)
    with servers(
        component, cluster, command,
        run_folder=config.run.folder, patience_s=engine.start_timeout_s,
    ) as folder:  # fmt: skip
        asked = {"servers_folder": str(folder), "num_servers": component.tasks}
        remote = engine.model_copy(update={"name": "vllm-server", **asked})
        yield config.model_copy(update={"engine": remote})
