"""The project's signature: loss and gradients do not depend on layout, micro-batch or packing."""

from pathlib import Path

import pytest
import torch

from tests.distributed import spawn
from tests.engine import invariance


def compare(rank: int, world_size: int, layout: tuple[int, int, int], folder: str) -> None:
    expected_loss, expected = invariance.reference(Path(folder))
    for name, batch in invariance.BATCHES.items():
        scratch = Path(folder) / "scratch" / "-".join(map(str, layout))
        measured = invariance.measure(layout, batch, Path(folder), scratch)
        if measured is None:
            continue
        loss, gradients = measured
        assert loss == pytest.approx(expected_loss, abs=1e-5), name
        assert gradients.keys() == expected.keys()
        for key, gradient in gradients.items():
            error = (gradient.double() - expected[key]).norm() / expected[key].norm()
            assert error < 1e-5, f"{name}: {key} is off by {error:.1e}"


@pytest.mark.parametrize("layout", invariance.LAYOUTS, ids=lambda x: "tp{}-pp{}-dp{}".format(*x))
def test_loss_and_gradients_equal_hugging_face_in_float64(
    layout: tuple[int, int, int], tmp_path: Path
) -> None:
    folder = invariance.make_model(tmp_path / "model", tied=layout[0] == layout[1])
    spawn(compare, layout[0] * layout[1] * layout[2], layout, str(folder))


def test_reference_itself_sees_both_roles(tmp_path: Path) -> None:
    loss, gradients = invariance.reference(invariance.make_model(tmp_path, tied=False))
    assert loss > 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
