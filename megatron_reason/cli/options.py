"""Options that several verbs share. Not here: any verb."""

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(help="YAML file of the run.", metavar="CONFIG")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value, for example --set train.optim.lr=1e-5. VALUE is YAML; an item of a "
        "list is meant by its index or its name: --set curate.promote.count=24. May be repeated.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
