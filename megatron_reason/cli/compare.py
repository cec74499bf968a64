"""Verb `compare`: paired tests between two evaluations. Not here: the tests (`evaluation`)."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from megatron_reason.cli.options import Json

_PLACE = "Folder of `mreason eval`, or RUN:MODEL."


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=_PLACE)],
    second: Annotated[str, typer.Argument(metavar="B", help=_PLACE)],
    force: Annotated[
        bool, typer.Option("--force", help="Compare although the evaluations were not made alike.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Test whether B is better than A, problem by problem.

    Shows the difference B - A with a 95 % interval over problems, and the probability of one as
    large if the models were exchangeable. Evaluations whose cards differ in more than weights and
    seed are refused.

    Example: mreason compare runs/oxa-quickstart:base runs/oxa-quickstart:oxa_full
    """
    from megatron_reason.cli.tables import show_table
    from megatron_reason.evaluation.compare import compare_folders

    found = compare_folders(first, second, force=force)
    if as_json:
        typer.echo(json.dumps([asdict(comparison) for comparison in found], indent=2))
        return
    for comparison in found:
        for reason in comparison.differences:
            typer.echo(f"NOT MADE ALIKE: {reason}", err=True)
        show_table(
            f"{second} - {first} on {comparison.problem_set}",
            ["metric", "difference", "95 % interval", "p", "better / worse", "test"],
            [
                [
                    metric,
                    f"{test.value:+.4g}",
                    f"{test.low:+.4g} to {test.high:+.4g}",
                    f"{test.p_value:.3g}",
                    f"{test.num_better} / {test.num_worse} of {test.num_problems}",
                    test.test,
                ]
                for metric, test in comparison.tests.items()
            ],
        )
