"""Words for inputs of analyses -> labelled folders.

    PLACE               labelled by its own name
    LABEL=PLACE         labelled by you
    RUN                 a run's folder: all its models
    RUN:MODEL           one of them, labelled by its name

Not here: what lies in the folders.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_reason.errors import DataError
from megatron_reason.evaluation.compare import find_evaluations
from megatron_reason.registry import suggest
from megatron_reason.report.run_data import PLAN
from megatron_reason.tracking.jsonl import METRICS

TOKEN_SCORES = "token_scores.parquet"
HELD_OUT = "held out"
"""What the problems of a run's own table are called."""


def evaluations(inputs: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Folders of evaluations by set of problems, and there by label.

    Raises:
        DataError: a place without an evaluation, or a label that is used twice.
    """
    found: dict[str, dict[str, Path]] = {}
    for label, place in _expanded(inputs, "eval"):
        for problem_set, folder in find_evaluations(place).items():
            group = found.setdefault(problem_set or HELD_OUT, {})
            _enter(group, label, folder)
    return found


def trainings(inputs: Sequence[str]) -> dict[str, Path]:
    """Files `metrics.jsonl` by label.

    Raises:
        DataError: a place without one, or a label that is used twice.
    """

    def metrics_of(folder: Path) -> Path:
        return folder if folder.name == METRICS else folder / METRICS

    return _files(_expanded(inputs, "train"), metrics_of, "a training's folder")


def token_scores(inputs: Sequence[str]) -> dict[str, Path]:
    """Files `token_scores.parquet` by label.

    Raises:
        DataError: a place without one, or a label that is used twice.
    """
    pairs = [_labelled(word) for word in inputs]
    return _files(iter(pairs), lambda folder: folder / TOKEN_SCORES, "what `mreason logprobs` made")


def run_folders(inputs: Sequence[str]) -> dict[str, Path]:
    """Folders of runs by label.

    Raises:
        DataError: a place that is no run, or a label that is used twice.
    """
    pairs = [_labelled(word) for word in inputs]
    plans = _files(iter(pairs), lambda folder: folder / PLAN, "a run's folder")
    return {label: path.parent for label, path in plans.items()}


def _files(
    pairs: Iterator[tuple[str, str]], file_of: Callable[[Path], Path], what: str
) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for label, place in pairs:
        file = file_of(_folder_of(place))
        if not file.is_file():
            raise DataError(place, f"there is no {file.name} here.", f"Give {what}.")
        _enter(found, label, file)
    return found


def _folder_of(place: str) -> Path:
    """Folder of a place; that of a model's training for RUN:MODEL."""
    name, colon, model = place.rpartition(":")
    if not colon or Path(place).exists():
        return Path(place)
    found = {path.name.partition("-train-")[2]: path for path in Path(name).glob("*-train-*")}
    if model not in found:
        way_out = suggest(model, found) if found else "Give a run's folder before the colon."
        raise DataError(place, f"{name} holds no training of '{model}'.", way_out)
    return found[model]


def _expanded(inputs: Sequence[str], kind: str) -> Iterator[tuple[str, str]]:
    """Labels and places; a run's folder becomes all its models, in the order of its stages."""
    for word in inputs:
        label, place = _labelled(word)
        run = Path(place)
        if not (run / PLAN).is_file():
            yield label, place
            continue
        folders = sorted(run.glob(f"*-{kind}-*"), key=lambda path: int(path.name.partition("-")[0]))
        models = [folder.name.partition(f"-{kind}-")[2] for folder in folders]
        prefix = f"{label} " if len(inputs) > 1 else ""
        yield from ((f"{prefix}{model}", f"{place}:{model}") for model in models)


def _labelled(word: str) -> tuple[str, str]:
    label, equals, place = word.partition("=")
    if equals and not Path(word).exists():
        return label, place
    name = word.rpartition(":")[2] if not Path(word).exists() else Path(word).resolve().name
    if name == METRICS:
        name = Path(word).resolve().parent.name
    for kind in ("-eval-", "-train-"):
        name = name.partition(kind)[2] or name
    return name, word


def _enter(group: dict[str, Path], label: str, path: Path) -> None:
    if label in group:
        raise DataError(
            f"{label}={path}",
            f"{group[label]} has the same label.",
            "Give labels of your own: LABEL=PLACE.",
        )
    group[label] = path
