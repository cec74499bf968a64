"""Writes `docs/invariance.md`: every method on every layout against Hugging Face in float64.

    .venv/bin/python tools/write_invariance.py [--only tp2-pp1-cp2-dp1]

What `tests/engine/test_invariance.py` asserts, as a table of the largest relative errors found.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.engine import invariance

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "invariance.md"


def measure(rank: int, _world_size: int, layout: "invariance.Layout", folder: str) -> None:
    """Errors of every method in every mode on this layout, written to `folder` by rank 0."""
    from tests.engine import invariance

    model, base = Path(folder, "model"), Path(folder, "base")
    world = invariance.World.open(layout, model, base)
    drawn = invariance.samples()
    exact = invariance.Reference.open(model, base)
    errors: dict[str, tuple[float, float]] = {}
    for name in invariance.METHODS:
        learner = invariance.method(name)
        expected_loss, expected = exact.measure(learner, drawn)
        for mode, batch in invariance.BATCHES.items():
            order = invariance.reordered(drawn, mode)
            measured = world.measure(learner, batch, order, Path(folder, "scratch"))
            if measured is None:
                continue
            loss, gradients = measured
            worst = max(
                float((gradient.double() - expected[key]).norm() / expected[key].norm())
                for key, gradient in gradients.items()
            )
            before = errors.get(name, (0.0, 0.0))
            gap = abs(loss - expected_loss) / max(abs(expected_loss), 1.0)
            errors[name] = (max(gap, before[0]), max(worst, before[1]))
    if rank == 0:
        Path(folder, "errors.json").write_text(json.dumps(errors), encoding="utf-8")


def table(columns: dict[str, dict[str, tuple[float, float]]], modes: list[str]) -> str:
    """The page: a row per method, a column per layout."""
    names = list(columns)
    rows = [
        "# Invariance", "",
        "Written by `tools/write_invariance.py`. A random Qwen2 of four layers in float32, one "
        "global batch of 15 sequences (demonstrations, errors, rollouts of three prompts); the "
        "reference is Hugging Face's model in float64, one unpadded sequence at a time. Each cell "
        "has the largest error of the loss (relative where the loss is above 1) and the largest "
        f"relative error of any parameter's gradient, over {', '.join(modes)}; but for the first "
        "of these the samples come in the opposite order (which keeps neighbours together: what "
        "acts on chunks of neighbouring sequences depends on who those are). Tests demand less "
        "than 1e-5.", "",
        "| method | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|",
    ]  # fmt: skip
    for method in next(iter(columns.values())):
        found = [columns[name][method] for name in names]
        cells = " | ".join(f"{loss:.0e}, {gradient:.0e}" for loss, gradient in found)
        rows.append(f"| {method} | {cells} |")
    return "\n".join([*rows, ""])


def main() -> None:
    """Measure every layout and write the page."""
    from tests.distributed import spawn
    from tests.engine import invariance

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="print one layout's column instead, as tp2-pp2-dp1")
    only = parser.parse_args().only
    columns: dict[str, dict[str, tuple[float, float]]] = {}
    for layout in invariance.LAYOUTS:
        name = str(layout)
        if only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            tied = layout.tp == layout.pp
            invariance.make_model(Path(folder, "model"), tied=tied)
            invariance.make_model(Path(folder, "base"), tied=tied, seed=4)
            spawn(measure, layout.ranks, layout, folder)
            columns[name] = json.loads(Path(folder, "errors.json").read_text(encoding="utf-8"))
        print(name, "done", flush=True)
    text = table(columns, list(invariance.BATCHES))
    if only is None:
        PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
