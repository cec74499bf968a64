"""Which settings tell several runs apart, from the configurations as they were written.

Not here: numbers that must not be compared for it (`evaluation/card.py`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

_ABSENT = ""
_NAMES = frozenset({"run.name", "run.dir", "run.cache"})
"""What every run has of its own."""


@dataclass(frozen=True)
class Differences:
    """A table of the settings that are not the same in all runs."""

    header: tuple[str, ...]
    """`run` and the settings; or `setting` and the runs, where there are more settings than runs.
    """
    rows: tuple[tuple[str, ...], ...]
    """Values, with the name of the run, or of the setting, first; empty where a run has none."""


def differences(settings: Mapping[str, Mapping[str, Any]]) -> Differences | None:
    """The settings in which runs differ, in the order in which they are written.

    Elements of lists that have a `name`, as stages and variants do, are told apart by it; other
    lists are compared as wholes.

    Args:
        settings: resolved configuration of each run, by the run's name.

    Returns:
        The table, or None where all runs have the same settings.
    """
    flat = {run: dict(_flattened("", given)) for run, given in settings.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values if key not in _NAMES)
    differing = [key for key in keys if len({values.get(key) for values in flat.values()}) > 1]
    if not differing:
        return None
    runs = list(flat)
    if len(differing) > len(runs):
        rows = [(key, *(flat[run].get(key, _ABSENT) for run in runs)) for key in differing]
        return Differences(("setting", *runs), tuple(rows))
    rows = [(run, *(flat[run].get(key, _ABSENT) for key in differing)) for run in runs]
    return Differences(("run", *differing), tuple(rows))


def _flattened(place: str, value: object) -> Iterator[tuple[str, str]]:
    """Dotted places of all leaves, and their values as text."""
    if isinstance(value, Mapping):
        items = cast("Mapping[str, object]", value).items()
        for key, part in items:
            yield from _flattened(f"{place}.{key}" if place else str(key), part)
    elif isinstance(value, list) and (named := _named(cast("Sequence[object]", value))):
        for name, part in named.items():
            yield from _flattened(f"{place}[{name}]", part)
    else:
        yield place, value if isinstance(value, str) else json.dumps(value, default=str)


def _named(values: Sequence[object]) -> Mapping[str, object]:
    """Elements by their names, if all have one and no two the same; else nothing."""
    named: dict[str, object] = {}
    for value in values:
        if not isinstance(value, Mapping) or "name" not in value:
            return {}
        named[str(cast("Mapping[str, object]", value)["name"])] = value
    return named if len(named) == len(values) else {}
