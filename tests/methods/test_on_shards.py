"""All tests of the methods once more, with the vocabulary of their logits cut into shards."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import TokenStats
from tests import loss
from tests.distributed import spawn

FOLDER = Path(__file__).parent


def sharded(logits: Tensor, target: Tensor, **options: Any) -> TokenStats:
    """`token_stats_from_logits` of a whole vocabulary, of which each rank computes its columns."""
    rank, size = dist.get_rank(), dist.get_world_size()
    vocab = logits.shape[1]
    columns = -(-vocab // size)

    def own(whole: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(whole, (0, columns * size - vocab), value=77.0)
        return padded[:, rank * columns : (rank + 1) * columns]

    def summed(grad: Tensor) -> Tensor:
        whole = grad.clone()
        dist.all_reduce(whole)
        return whole

    if logits.requires_grad:
        logits.register_hook(summed)
    reference = options.pop("reference_logits", None)
    options |= {"tp_group": dist.group.WORLD, "vocab_size": vocab}
    if reference is not None:
        options["reference_logits"] = own(reference)
    return token_stats_from_logits(own(logits), target, **options)


class Shards:
    """A pytest plug-in: whoever asks for statistics gets them from shards."""

    def __init__(self) -> None:
        self.num_passed = 0
        self.num_asked = 0

    def asked(self, logits: Tensor, target: Tensor, **options: Any) -> TokenStats:
        """What the tests call."""
        self.num_asked += 1
        return sharded(logits, target, **options)

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        # Those that start processes of their own are about something else.
        items[:] = [item for item in items if "spawn(" not in inspect.getsource(item.function)]
        for module in {item.module for item in items} | {loss}:
            if hasattr(module, "token_stats_from_logits"):
                module.token_stats_from_logits = self.asked

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.num_passed += report.when == "call" and report.passed


def every_test(rank: int, world_size: int, files: Sequence[str]) -> None:
    shards = Shards()
    plain = ["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "--no-header"]
    assert pytest.main([*plain, *files], plugins=[shards]) == 0
    assert shards.num_passed > 150
    assert shards.num_asked > 150


@pytest.mark.parametrize("world_size", [2, 5])
def test_every_test_of_the_methods_holds_on_shards(world_size: int) -> None:
    files = [str(path) for path in sorted(FOLDER.glob("test_*.py")) if path != Path(__file__)]
    spawn(every_test, world_size, files, megatron=False)
