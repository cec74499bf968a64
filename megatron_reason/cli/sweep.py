"""The verb `sweep`: a grid of runs through NeMo-Run, and one table of what came out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_reason.cli.cluster import On
from megatron_reason.cli.options import Json

if TYPE_CHECKING:
    from megatron_reason.config.sweep import SweepConfig


_FINISHED = "finished"


@dataclass(frozen=True)
class Row:
    """One run of a sweep."""

    run: str
    state: str
    """Whether its last stage is done."""
    settings: Mapping[str, object]
    measured: Mapping[str, float]


def sweep(
    grid: Annotated[Path, typer.Argument(help="YAML file of the sweep.", metavar="GRID")],
    on: On = None,
    python: Annotated[
        str, typer.Option(help="Interpreter of the training environment.")
    ] = ".venv/bin/python",
    only_collect: Annotated[
        bool, typer.Option("--collect", help="Run nothing; only collect what is there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe with every combination of some values, and compare.

    Through NeMo-Run: on this machine, or with --on as jobs of a cluster, one node each. Writes
    DIR/NAME.json with the settings of each run and what was measured, and a page with the reports
    of all finished runs side by side: DIR/NAME/index.html.

    Example: mreason sweep examples/sweeps/oxa_table3.yaml --on h100
    """
    from megatron_reason.config.load import load_config
    from megatron_reason.config.sweep import SweepConfig
    from megatron_reason.files import write_json
    from megatron_reason.launch.clusters import load_cluster
    from megatron_reason.launch.nemo_run import launch_sweep
    from megatron_reason.report.page import build_comparison

    settings = load_config(grid, [], SweepConfig)
    points = settings.points()
    if not only_collect:
        commands = [
            (settings.run_name(index), settings.arguments(index)) for index in range(len(points))
        ]
        cluster = None if on is None else load_cluster(on)
        launch_sweep(settings.name, commands, python=python, cluster=cluster)
    rows = [
        Row(
            name := settings.run_name(index),
            _state(settings.dir / name),
            point,
            _measured(settings, index),
        )
        for index, point in enumerate(points)
    ]
    write_json(settings.dir / f"{settings.name}.json", [asdict(row) for row in rows])
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        _show(settings, rows)
    finished = [settings.dir / row.run for row in rows if row.state == _FINISHED]
    if finished:
        # A grid may change what is measured, its seed for one: the page says what differs.
        page = build_comparison(finished, settings.dir / settings.name, force=True)
        typer.echo(f"Report: {page}", err=as_json)


def _show(settings: "SweepConfig", rows: Sequence[Row]) -> None:
    from megatron_reason.cli.tables import show_table

    measured = sorted({name for row in rows for name in row.measured})
    show_table(
        f"{settings.name}: {len(rows)} runs of {settings.recipe}",
        ["run", "state", *settings.grid, *measured],
        [
            [row.run, row.state, *map(str, row.settings.values()),
             *(_shown(row.measured.get(name)) for name in measured)]
            for row in rows
        ],
    )  # fmt: skip


def _state(folder: Path) -> str:
    return _FINISHED if (folder / "report" / "index.html").is_file() else "not finished"


def _measured(settings: "SweepConfig", index: int) -> dict[str, float]:
    """Pass@1 of every evaluation, and the last loss of every training, of a run."""
    from megatron_reason.files import read_json

    folder = settings.dir / settings.run_name(index)
    found: dict[str, float] = {}
    for path in sorted(folder.glob("*-eval-*/**/summary.json")):
        stage = path.relative_to(folder).parts[0].partition("-eval-")[2]
        metrics: dict[str, Any] = read_json(path).get("metrics", {})
        if "pass@1" in metrics:
            words = [stage, *path.relative_to(folder).parts[1:-1], "pass@1"]
            found[" ".join(words)] = metrics["pass@1"]["value"]
    for path in sorted(folder.glob("*-train-*/metrics.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        # Empty before the first update.
        last = json.loads(lines[-1]) if lines else {}
        if "train/loss" in last:
            found[f"{path.parent.name.partition('-train-')[2]} loss"] = last["train/loss"]
    return found


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
