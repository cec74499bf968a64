"""The CPU stands in for CUDA only inside the context, and refuses what has no counterpart."""

import subprocess
import sys

import pytest
import torch

from megatron_reason import platform
from megatron_reason.errors import PlatformError

pytestmark = pytest.mark.skipif(
    platform.distributed_backend() == "nccl", reason="the context does nothing where CUDA is"
)


def test_habits_of_megatron_act_on_the_cpu() -> None:
    with platform.cpu():
        assert torch.cuda.current_device() == torch.device("cpu")
        torch.cuda.synchronize()
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.zeros(2, device=torch.device("cuda", 1)).device.type == "cpu"
        weight = torch.ones(2)
        assert weight.cuda() is weight
        assert weight.to("cuda").device.type == "cpu"
        assert torch.nn.Linear(2, 2).to("cuda").weight.device.type == "cpu"
        assert weight.type() == "torch.cuda.FloatTensor"
        assert weight.type(torch.float64).dtype == torch.float64


def test_the_way_out_ends_with_its_block() -> None:
    with platform.cpu():
        with platform.unadapted():
            assert torch.zeros(2).shape == (2,)
            with pytest.raises((RuntimeError, AssertionError)):
                torch.zeros(2, device="cuda")
        assert torch.zeros(2, device="cuda").device.type == "cpu"


def test_generator_is_the_cpu_one() -> None:
    with platform.cpu():
        torch.cuda.manual_seed(7)
        state = torch.cuda.get_rng_state()
        first = torch.rand(3)
        torch.cuda.set_rng_state(state)
        assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize(
    "attribute", ["current_stream", "get_device_properties", "Event", "Stream"]
)
def test_what_is_not_adapted_is_named(attribute: str) -> None:
    with platform.cpu(), pytest.raises(PlatformError, match=rf"torch\.cuda\.{attribute}"):
        getattr(torch.cuda, attribute)()


def test_classes_that_are_refused_still_serve_in_types() -> None:
    with platform.cpu():
        assert not isinstance(object(), torch.cuda.Stream)
        assert torch.cuda.Stream | None


def test_everything_is_restored_even_after_a_failure() -> None:
    before = {
        name: getattr(torch.cuda, name) for name in ("current_device", "Stream", "set_device")
    }
    with pytest.raises(ZeroDivisionError), platform.cpu():
        raise ZeroDivisionError
    assert before == {name: getattr(torch.cuda, name) for name in before}
    assert torch.ones(1).type() == "torch.FloatTensor"
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda")


def test_process_is_described() -> None:
    assert platform.device() == torch.device("cpu")
    assert platform.distributed_backend() == "gloo"
    assert platform.num_gpus() == 0
    assert platform.name().startswith("CPU")
    assert 0.05 < platform.peak_memory_gb() < 1000


def test_planning_needs_no_megatron() -> None:
    program = (
        "import sys\n"
        "from megatron_reason.models.architecture import ARCHITECTURES\n"
        "from megatron_reason.models.divisibility import check_topology\n"
        "from megatron_reason.models.sources import resolve_model\n"
        "assert ARCHITECTURES.names()\n"
        "assert 'megatron' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
