"""Checks of the transport inside the engine; a whole update is tested in `test_vllm_engine.py`."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_reason.errors import GenerationError
from megatron_reason.generation.buckets import SharedBuffer, described

pytest.importorskip("vllm")


class Pair(torch.nn.Module):
    """Has vLLM's own bookkeeping of a layer with two parameters, loaded one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.zeros(4, 5))
        self.b = torch.nn.Parameter(torch.zeros(3))

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights:
            parameter: Any = getattr(self, name)
            parameter.weight_loader(parameter, tensor)


@pytest.fixture
def transfer() -> Any:
    from types import SimpleNamespace

    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

    from megatron_reason.generation.vllm_transfer import SharedMemoryTransfer

    model = Pair()
    record_metadata_for_reloading(model)
    config: Any = SimpleNamespace(parallel_config=None, model_config=SimpleNamespace(dtype=None))
    return SharedMemoryTransfer(config, config, torch.device("cpu"), model)


def test_a_layer_in_two_buckets_does_not_refer_to_memory_that_is_filled_again(transfer: Any):
    tensors = {"a": torch.randn(4, 5), "b": torch.randn(3)}
    buffer = SharedBuffer()
    transfer.start_weight_update()
    for name, tensor in tensors.items():
        entry, _ = described(name, tensor)
        buffer.fill([(entry, tensor)])
        transfer.update_weights({"path": buffer.path, "entries": [entry]})
        buffer.fill([(entry, torch.full_like(tensor, 7.0))])
    transfer.finish_weight_update()
    assert torch.equal(transfer.model.a, tensors["a"])
    assert torch.equal(transfer.model.b, tensors["b"])


def test_damaged_tensors_are_not_loaded(transfer: Any):
    entry, tensor = described("a", torch.randn(4, 5))
    buffer = SharedBuffer()
    buffer.fill([(entry, tensor)])
    wrong = replace(entry, checksum=entry.checksum ^ 1)
    transfer.start_weight_update()
    with pytest.raises(GenerationError, match="checksum"):
        transfer.update_weights({"path": buffer.path, "entries": [wrong]})
    transfer.finish_weight_update()
    assert not transfer.model.a.any()
