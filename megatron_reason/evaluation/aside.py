"""Stored answers that another evaluation takes the place of: moved aside, never deleted.

Not here: when that is so (`run.py`).
"""

import os
import re
from itertools import count
from pathlib import Path

from megatron_reason.evaluation.card import CARD, read_card, write_card
from megatron_reason.evaluation.disagreements import DISAGREEMENTS
from megatron_reason.evaluation.summary import SUMMARY
from megatron_reason.schema.tables import Kind, table_path

_NAME = re.compile(r"before-\d+")


def set_aside(folder: Path) -> Path:
    """Move answers and card of the evaluation in `folder` into a folder `before-N` within it.

    What is computed from them is removed; `mreason regrade` on the new folder makes it again.

    Returns:
        The new folder.
    """
    answers = table_path(folder, Kind.GENERATIONS)
    places = (folder / f"before-{number}" for number in count(1))
    place = next(path for path in places if not (path / answers.name).exists())
    # In this order: a table must never lie beside a card that it was not made under.
    write_card(place, read_card(folder))
    os.replace(answers, place / answers.name)
    for name in (CARD, SUMMARY, DISAGREEMENTS):
        (folder / name).unlink(missing_ok=True)
    return place


def is_aside(path: Path) -> bool:
    """Whether a relative path leads into a folder of answers set aside."""
    return any(_NAME.fullmatch(part) for part in path.parts)
