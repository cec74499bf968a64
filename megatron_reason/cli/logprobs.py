"""Verb `logprobs`: token scores of stored answers. Not here: scoring (`evaluation`)."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_reason.cli.options import Set


def logprobs(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hugging Face folder, hub id or built-in model.")
    ],
    answers: Annotated[
        str,
        typer.Option("--answers", metavar="PLACE", help="Folder of an evaluation, or RUN:MODEL."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to write to; else beside the answers."),
    ] = None,
    overrides: Set = None,
) -> None:
    """Score every token of stored answers under a model: log-probability and entropy.

    What `mreason analyse` draws token_change, trajectories and the errors of good_start from. Put
    beside the answers, scores under the model that wrote them colour its samples in the report.
    The template must be that of the evaluation. Settings: model, template, where (all, correct or
    wrong), max_responses, max_tokens, max_tokens_per_batch.

    Example: mreason logprobs smollm2-135m --answers runs/oxa-quickstart:base --out scores/base
    --set where=wrong
    """
    from megatron_reason.config.load import load_config
    from megatron_reason.errors import DataError
    from megatron_reason.evaluation.compare import find_evaluations
    from megatron_reason.evaluation.token_scores import TokenScoreConfig, score_answers
    from megatron_reason.logs import setup_logging
    from megatron_reason.models.sources import resolve_model

    setup_logging()
    settings = load_config(None, [f"model.path={model}", *(overrides or [])], TokenScoreConfig)
    found = find_evaluations(answers)
    if len(found) > 1:
        raise DataError(
            answers,
            f"it holds several evaluations: {', '.join(name or '.' for name in found)}.",
            "Give the folder of one of them.",
        )
    folder = next(iter(found.values()))
    weights = resolve_model(model, Path("models"))
    scored = score_answers(folder, weights, out or folder, settings)
    typer.echo(f"{len(scored)} answers scored: {out or folder}")
