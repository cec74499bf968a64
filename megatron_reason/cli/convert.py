"""The verb convert: import, export, verify. Not here: conversion itself (`models`, `pipeline`)."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from megatron_reason.cli.options import Json, Set

app = typer.Typer(help="Bring models in and out.", no_args_is_help=True, rich_markup_mode=None)

Source = Annotated[Path, typer.Argument(metavar="SRC", help="Hugging Face folder.")]
Target = Annotated[Path, typer.Argument(metavar="DST", help="Folder to write, not there yet.")]


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Hub id, built-in model or Hugging Face folder.")
    ],
    target: Target,
) -> None:
    """Fetch or unpack a model into a Hugging Face folder.

    Refuses a model that Megatron would not compute as Hugging Face does.

    Example: mreason convert import smollm2-135m models/my-smollm2
    """
    from megatron_reason.logs import setup_logging
    from megatron_reason.pipeline.conversion import bring_in

    setup_logging()
    bring_in(source, target)
    typer.echo(str(target))


@app.command("export")
def export(source: Source, target: Target, overrides: Set = None) -> None:
    """Write a model anew, through Megatron, with other settings.

    SRC is any Hugging Face folder, such as the `huggingface` of a training stage. Settings:
    model.rope_theta, model.context_length, chat_template, max_shard_size, parallel.*,
    threads_per_process.

    Example: mreason convert export runs/oxa/220-train-oxa_full/huggingface long
    --set model.context_length=16384
    """
    from megatron_reason.logs import setup_logging
    from megatron_reason.pipeline.conversion import convert

    setup_logging()
    convert(source, target, overrides or [])
    typer.echo(str(target))


@app.command("verify")
def verify(
    source: Source,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the report goes instead of SRC."),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Prove that a round trip through Megatron loses nothing.

    Every tensor must come back bit for bit, every other file byte for byte, and Megatron must
    compute the log-probabilities that transformers computes. What was found is written to
    conversion_report.json. Settings: parallel.*, threads_per_process.

    Example: mreason convert verify models/smollm2-135m
    --set parallel.pipeline_model_parallel_size=2
    """
    from megatron_reason.logs import setup_logging
    from megatron_reason.pipeline.conversion import verify as compare_with_itself

    setup_logging()
    found = compare_with_itself(source, overrides or [], report)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        typer.echo(
            f"{source}: {found.round_trip.num_tensors} tensors bit-identical, "
            f"{found.round_trip.num_files} files the same; of {found.agreement.num_tokens} tokens "
            f"log-probabilities within {found.agreement.largest_logprob_gap:.1e} nats of "
            f"transformers, {found.agreement.top1_fraction:.1%} with the same likeliest one"
        )
