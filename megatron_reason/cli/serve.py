"""Verb that serves a run's model to trainers and evaluations elsewhere. Not here: the server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_reason.cli.options import Config, Set

if TYPE_CHECKING:
    from megatron_reason.config.model import ModelConfig


def serve(
    config: Config,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Whoever reaches it can change the weights.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, help="Port to listen at; 0 takes one that is free.")
    ] = 8000,
    register: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to register in, the run's engine.servers_folder."),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="GPUs of this server: it shards the model among all that the model's heads "
            "allow, unless engine.tensor_parallel_size is set.",
        ),
    ] = None,
    overrides: Set = None,
) -> None:
    """Serve the model of a run with vLLM, for runs with engine.name: vllm-server.

    Lengths and memory are those of the run's section `engine`; log-probs are always those of the
    distribution that is sampled from. Ends with SIGTERM or Ctrl-C, and with SIGUSR1 so that job
    scripts queue it again; a server that dies or hangs is started again.

    Example: mreason serve examples/quickstart_cpu/rl.yaml --port 8000 --register runs/servers
    """
    import socket

    from megatron_reason.config.load import load_config
    from megatron_reason.generation.vllm_server import Serving, free_port
    from megatron_reason.generation.vllm_server import serve as serve_model
    from megatron_reason.logs import setup_logging
    from megatron_reason.models.sources import resolve_model
    from megatron_reason.pipeline._sizes import sizes_of
    from megatron_reason.pipeline.engine_share import on_gpus
    from megatron_reason.pipeline.run_config import RunConfig

    setup_logging()
    settings = load_config(config, overrides or [], RunConfig)
    engine = settings.engine.model_copy(update={"logprobs": "sampler"})
    model = settings.model
    source = resolve_model(
        model.path, settings.run.model_cache, random_weights=model.random_weights
    )
    if gpus is not None:
        engine = on_gpus(engine, sizes_of(str(source), settings.run.model_cache), gpus)
    port = port or free_port(host)
    name = f"server-{socket.gethostname()}-{port}"
    # Of this server alone: others may be starting, and replace theirs.
    folder = folder_as_trained(model, source, settings.run.folder / "served" / name)
    log_path = settings.run.folder / "logs" / f"{name}.log"
    serve_model(Serving(folder, model.dtype, engine, host, port, log_path, register))


def folder_as_trained(model: "ModelConfig", source: Path, target: Path) -> Path:
    """Hugging Face folder of `source` with what the run changes of the model, as trainers have it.

    The weights that trainers bring would be computed with another rotary embedding otherwise. The
    chat template is left as it is: token ids are asked and answered.

    Args:
        model: section `model` of the run.
        source: folder of the model.
        target: replaced by a folder with links to the weights, if anything is changed.
    """
    from megatron_reason.files import atomic_folder
    from megatron_reason.models.checkpoint_files import INDEX
    from megatron_reason.models.companions import Changes, copy_companions

    changes = Changes(model.rope_theta, model.context_length)
    if changes == Changes():
        return source
    with atomic_folder(target) as folder:
        copy_companions(source, folder, changes)
        for weights in (*source.glob("*.safetensors"), *source.glob(INDEX)):
            (folder / weights.name).symlink_to(weights.resolve())
    return target
