"""`rewriting.json`, beside a rewritten table: the model, and how many rows each stage gave.

Table 1 of Data Rewriting (arXiv 2509.15157). Not here: what is counted (`rewrite.py`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_reason.files import read_json, write_json

_FILE = "rewriting.json"


def write_counts(folder: Path, model: str, counts: Mapping[str, int]) -> None:
    """Write the file.

    Args:
        folder: of the table.
        model: name of the model that rewrote.
        counts: rows by stage, and the rest of what was counted.
    """
    write_json(folder / _FILE, {"model": model, "counts": dict(counts)})


def join_counts(folders: Sequence[Path], output: Path) -> None:
    """Write the sums of several such files; nothing where a table was not rewritten."""
    if not all((folder / _FILE).is_file() for folder in folders):
        return
    parts = [read_json(folder / _FILE) for folder in folders]
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part["counts"])
    write_counts(output, " and ".join(dict.fromkeys(part["model"] for part in parts)), total)
