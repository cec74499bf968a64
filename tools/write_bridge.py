"""Writes the support table in `docs/bridge.md`: every family on every layout of four processes.

    .venv/bin/python tools/write_bridge.py [--print]

What `tests/models/test_exporter.py` asserts, as the differences found. The text around the table is
written by hand.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "bridge.md"
BEGIN, END = "<!-- written by tools/write_bridge.py -->\n", "<!-- end of what it writes -->\n"


def table() -> str:
    """A row per family, a column per layout."""
    from tests.models import grid

    with tempfile.TemporaryDirectory() as folder:
        outcomes = grid.measure(Path(folder))
    layouts = list(dict.fromkeys(outcome.layout for outcome in outcomes))
    found: dict[str, dict[str, str]] = {}
    for outcome in outcomes:
        cell = f"{outcome.gap:.0e}" if not outcome.files_differ else "differs"
        found.setdefault(outcome.family, {})[outcome.layout] = cell
    rows = [f"| family | {' | '.join(layouts)} |", "|---" * (len(layouts) + 1) + "|"]
    for family, cells in sorted(found.items()):
        shown = " | ".join(cells.get(layout, "") for layout in layouts)
        rows.append(f"| {family} | {shown} |")
    return "\n".join([*rows, ""])


def main() -> None:
    """Measure, and put the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="leave the page as it is")
    only_print = parser.parse_args().print
    text = table()
    print(text)
    if not only_print:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
