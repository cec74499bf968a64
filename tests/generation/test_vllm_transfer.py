"""Checks of the transport inside the engine; a whole update is tested in `test_vllm_engine.py`."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_reason.errors import GenerationError
from megatron_reason.generation.buckets import SharedBuffer, described

pytest.importorskip("vllm")


class Taking(torch.nn.Module):
    """Takes tensors as vLLM's layers do: by reference, to be used later."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        self.taken.update(weights)


@pytest.fixture
def transfer() -> Any:
    from types import SimpleNamespace

    from megatron_reason.generation.vllm_transfer import SharedMemoryTransfer

    config: Any = SimpleNamespace(parallel_config=None, model_config=None)
    return SharedMemoryTransfer(config, config, torch.device("cpu"), Taking())


def test_tensors_outlive_the_memory_they_came_in(transfer: Any):
    tensors = {"a": torch.randn(4, 5), "b": torch.randn(3).bfloat16()}
    bucket = [described(name, tensor) for name, tensor in tensors.items()]
    buffer = SharedBuffer()
    buffer.fill(bucket)
    transfer.update_weights({"path": buffer.path, "entries": [entry for entry, _ in bucket]})
    buffer.fill([described(name, torch.zeros_like(tensor)) for name, tensor in tensors.items()])
    for name, tensor in tensors.items():
        assert torch.equal(transfer.model.taken[name], tensor)


def test_damaged_tensors_are_not_loaded(transfer: Any):
    entry, tensor = described("a", torch.randn(4, 5))
    buffer = SharedBuffer()
    buffer.fill([(entry, tensor)])
    wrong = replace(entry, checksum=entry.checksum ^ 1)
    with pytest.raises(GenerationError, match="checksum"):
        transfer.update_weights({"path": buffer.path, "entries": [wrong]})
    assert not transfer.model.taken
