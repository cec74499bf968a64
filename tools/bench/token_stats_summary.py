"""The ratios of all tables of `token_stats.py` in one, as `docs/token_stats.md` shows them.

python tools/bench/token_stats_summary.py
"""

import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_CASE = re.compile(r"T = (\d+), .*, (\w+), TP = (\d+), .*chunks of (\d+)")
_HEADER = (
    "| T | TP | type | chunk | forward and backward, streamed | extra memory | with the gradients "
    "| statistics alone | torch's three products alone | ours alone |"
)


def main() -> None:
    """Print one row for each table."""
    tables = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("token_stats-*.json"))]
    print(_HEADER)
    print("|" + "---|" * _HEADER.count("| "))
    for line in sorted(map(_line, tables), key=lambda line: [int(x) for x in line[:2]] + line[2:3]):
        print(f"| {' | '.join(line)} |")
    for name in ("own, overwriting", "own"):
        shares = [_of(table, "logits", name) / _peer(table, "logits") for table in tables]
        print(f"from logits, {name}: {min(shares):.2f} to {max(shares):.2f}")


def _line(table: dict[str, Any]) -> list[str]:
    found = _CASE.match(table["case"])
    assert found is not None, table["case"]
    tokens, dtype, tp, chunk = found.groups()
    peer, peer_mib = _peer(table, "head"), _peer(table, "head", "peak_mib")
    made, peer_made = (
        _of(table, "head", "own, streamed", "gradients_mib"), _peer(table, "head", "gradients_mib"),
    )  # fmt: skip
    shares = (
        _of(table, "head", "own, streamed") / peer,
        _of(table, "head", "own, streamed", "peak_mib") / peer_mib,
        (_of(table, "head", "own, streamed", "peak_mib") + made) / (peer_mib + peer_made),
        _of(table, "forward", "own") / _peer(table, "forward"),
        _of(table, "floor", "torch's products") / peer,
        _of(table, "floor", "own products") / peer,
    )
    return [tokens, tp, dtype, chunk, *(f"{share:.2f}" for share in shares)]


def _of(table: dict[str, Any], task: str, name: str, what: str = "seconds") -> float:
    (row,) = [row for row in table["rows"] if (row["task"], row["name"]) == (task, name)]
    return row[what]


def _peer(table: dict[str, Any], task: str, what: str = "seconds") -> float:
    """What the fastest peer takes."""
    peers = [row for row in table["rows"] if row["task"] == task and not row["is_own"]]
    return min(peers, key=lambda row: row["seconds"])[what]


if __name__ == "__main__":
    main()
