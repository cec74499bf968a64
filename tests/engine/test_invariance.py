"""The project's signature: loss and gradients do not depend on layout, micro-batch or packing."""

from pathlib import Path

import pytest
import torch

from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import create_method, method_names
from tests.distributed import spawn
from tests.engine import invariance

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """By whether the embeddings are tied: two models, and what every method makes of them."""
    found: dict[bool, Path] = {}
    for tied in (True, False):
        folder = found[tied] = tmp_path_factory.mktemp("tied" if tied else "untied")
        model = invariance.make_model(folder / "model", tied=tied)
        base = invariance.make_model(folder / "base", tied=tied, seed=4)
        exact = invariance.Reference.open(model, base)
        references = {
            name: exact.measure(invariance.method(name), invariance.samples())
            for name in invariance.METHODS
        }
        torch.save(references, folder / "references.pt")
    return found


def compare(
    rank: int, world_size: int, layout: invariance.Layout, folder: str, scratch: Path
) -> None:
    model, base = Path(folder, "model"), Path(folder, "base")
    world = invariance.World.open(layout, model, base)
    drawn = invariance.samples()
    references = torch.load(Path(folder, "references.pt"))
    for name in invariance.METHODS:
        learner = invariance.method(name)
        expected_loss, expected = references[name]
        # What four ranks have of their own is no matter of packing: the two extremes do.
        modes = list(invariance.BATCHES.items())
        for mode, batch in modes if world_size < 4 else (modes[0], modes[-1]):
            order = invariance.reordered(drawn, mode)
            measured = world.measure(learner, batch, order, scratch)
            if measured is None:
                continue
            loss, gradients = measured
            where = f"{name}, {mode}"
            assert loss == pytest.approx(expected_loss, rel=1e-6, abs=TOLERANCE), where
            assert gradients.keys() == expected.keys()
            for key, gradient in gradients.items():
                error = (gradient.double() - expected[key]).norm() / expected[key].norm()
                assert error < TOLERANCE, f"{where}: {key} is off by {error:.1e}"


@pytest.mark.parametrize("layout", invariance.LAYOUTS, ids=str)
def test_every_method_equals_hugging_face_in_float64(
    layout: invariance.Layout, folders: dict[bool, Path], tmp_path: Path
) -> None:
    folder = str(folders[layout.tp == layout.pp])
    spawn(compare, layout.ranks, layout, folder, tmp_path / "scratch")


def test_every_method_is_in_the_table() -> None:
    assert {kind for kind, _ in invariance.METHODS.values()} == set(method_names())


def test_the_reference_is_what_one_writes_by_hand(tmp_path: Path) -> None:
    """OXA without any of our code between logits and loss."""
    from transformers import AutoModelForCausalLM

    folder = invariance.make_model(tmp_path, tied=False)
    drawn = invariance.samples()
    loss, gradients = invariance.reference(
        create_method("oxa", suppress_weight=0.5), folder, folder, drawn
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for sample in drawn:
        ids = torch.tensor(sample.ids)
        logits = model(ids[None, :-1]).logits[0, sample.num_prompt_tokens - 1 :]
        logprob = torch.log_softmax(logits, dim=1).gather(1, ids[sample.num_prompt_tokens :, None])
        if sample.role == Role.DEMO:
            total = total - logprob.mean() / 3
        if sample.role == Role.NEGATIVE:
            total = total - 0.5 * torch.log1p(-logprob.exp()).mean() / 3
    total.backward()
    assert loss == pytest.approx(total.item(), abs=1e-12)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-12, rtol=1e-9)
