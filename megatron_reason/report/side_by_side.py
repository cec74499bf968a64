"""Several runs as one: every model, selection and stage carries its run's name.

Not here: reading a run (`run_data.py`) and the page (`page.py`).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_reason.errors import DataError
from megatron_reason.report.differences import differences
from megatron_reason.report.repeats import gathered
from megatron_reason.report.run_data import RunData, read_run


def read_runs(folders: Sequence[Path], *, force: bool = False) -> RunData:
    """Read one run, or several side by side.

    Args:
        folders: folders of runs.
        force: put numbers beside each other although they were not made alike; the page says so.

    Raises:
        DataError: a folder that is no run, two of one name, or evaluations that must not be
            compared and no `force`.
    """
    if len(folders) == 1:
        return gathered(read_run(folders[0]))
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise DataError(
            ", ".join(map(str, folders)),
            "two runs have the same name, by which the page tells them apart.",
            "Rename one of the folders.",
        )
    runs = {name: read_run(folder) for name, folder in zip(names, folders, strict=True)}
    merged = replace(
        _merged([_named(gathered(run), name) for name, run in runs.items()]),
        differences=differences({name: run.settings for name, run in runs.items()}),
    )
    if (reasons := merged.incomparable()) and not force:
        raise DataError(
            ", ".join(map(str, folders)),
            f"their numbers must not be compared: {reasons[0]}"
            + (f", and {len(reasons) - 1} more." if len(reasons) > 1 else "."),
            "Evaluate them alike, or add --force; the page then says so.",
        )
    return merged


def _named(data: RunData, run: str) -> RunData:
    """The same run with its name before every name in it."""

    def named(name: str) -> str:
        return f"{run}: {name}"

    return replace(
        data,
        stages=[replace(stage, name=named(stage.name)) for stage in data.stages],
        models=[named(model) for model in data.models],
        selections=[
            replace(
                selection,
                name=named(selection.name),
                pool=named(selection.pool),
                variants=tuple(named(variant) for variant in selection.variants),
            )
            for selection in data.selections
        ],
        training={named(model): frame for model, frame in data.training.items()},
        measurements=[replace(m, model=named(m.model)) for m in data.measurements],
        averages=[replace(a, model=named(a.model)) for a in data.averages],
        troubles=[named(trouble) for trouble in data.troubles],
        seeds={named(model): count for model, count in data.seeds.items()},
    )


def _merged(parts: Sequence[RunData]) -> RunData:
    return RunData(
        folder=parts[0].folder,
        stages=[stage for part in parts for stage in part.stages],
        models=[model for part in parts for model in part.models],
        selections=[selection for part in parts for selection in part.selections],
        training={model: frame for part in parts for model, frame in part.training.items()},
        measurements=[m for part in parts for m in part.measurements],
        averages=[a for part in parts for a in part.averages],
        settings={},
        troubles=[trouble for part in parts for trouble in part.troubles],
        num_runs=len(parts),
        seeds={model: count for part in parts for model, count in part.seeds.items()},
    )
