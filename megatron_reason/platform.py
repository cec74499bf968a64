"""Which device this process computes on, and stand-ins for Megatron's CUDA habits on a CPU.

Inside `with cpu():` the few CUDA calls of Megatron-Core that our paths reach act on the CPU; any
other call raises `PlatformError` instead of failing deep inside a library. Where CUDA is available
the context does nothing. Enter it before Megatron is imported. Not here: choices of algorithm.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed import ProcessGroup
from torch.overrides import TorchFunctionMode

from megatron_reason.errors import PlatformError

_RNG = "megatron.core.tensor_parallel.random"
_DISPATCH = "megatron.core.transformer.moe.token_dispatcher"
_CUDA_TYPE_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
}
_UNADAPTED = (
    "current_stream", "default_stream", "get_device_capability", "get_device_properties",
    "graph_pool_handle", "mem_get_info", "set_device", "set_stream",
)  # fmt: skip
_UNADAPTED_CLASSES = ("CUDAGraph", "Event", "Stream")
_CPU = torch.device("cpu")


def device() -> torch.device:
    """Device of this process: the current CUDA device, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def select_device(local_rank: int) -> None:
    """Make the GPU with index `local_rank` this process's device; nothing on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)


def distributed_backend() -> str:
    """Backend of torch.distributed for `device()`."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def process_group(
    store: Store, rank: int, size: int, *, host: str, timeout: timedelta
) -> "Collective":
    """A group beside this process's own, of processes that meet at `store`; waits for all of them.

    Over NCCL between the current GPUs, over gloo between CPUs.

    Args:
        store: the same for all.
        rank: this process's place in it.
        size: how many they are.
        host: address of this machine that the others reach; on GPUs NCCL looks for its own.
        timeout: longest wait for the others, now and in every operation.

    Raises:
        RuntimeError: the others do not come in time.
    """
    untyped: Any = dist
    if torch.cuda.is_available():
        options = untyped.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return untyped.ProcessGroupNCCL(store, rank, size, options)
    options = untyped.ProcessGroupGloo._Options()
    options._timeout = timeout
    options._devices = [untyped.ProcessGroupGloo.create_device(hostname=host)]
    return untyped.ProcessGroupGloo(store, rank, size, options)


class Collective(Protocol):
    """What is asked of such a group."""

    def broadcast(self, tensors: list[torch.Tensor], opts: dist.BroadcastOptions) -> dist.Work:
        """Bring the root's tensors to all."""
        ...

    def abort(self) -> None:
        """Leave, whatever is under way."""
        ...


def limit_threads(count: int) -> None:
    """Let torch compute on so many CPU threads in this process."""
    torch.set_num_threads(count)


def name() -> str:
    """What `device()` is, for the log."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} thread(s) per process"


def attends_at_once(values: torch.Tensor) -> bool:
    """Whether one kernel attends to many sequences of such values: of two bytes, on a GPU."""
    return values.is_cuda and values.element_size() == 2


def prefers_onednn(values: torch.Tensor) -> bool:
    """Whether oneDNN multiplies such matrices faster than MKL, which torch asks first.

    So it is in float32 on AMD's CPUs with AVX-512: MKL keeps to AVX2 there.
    """
    is_on_cpu = values.device.type == "cpu"
    return is_on_cpu and values.dtype == torch.float32 and _mkl_lacks_kernels()


def num_gpus() -> int:
    """GPUs that this process sees; 0 on a CPU."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def accelerators() -> str:
    """Which optional GPU libraries are installed, for the log."""
    optional = ("transformer_engine", "apex", "flash_attn")
    found = [module for module in optional if importlib.util.find_spec(module) is not None]
    missing = [module for module in optional if module not in found]
    return f"found {', '.join(found) or 'none'}; without {', '.join(missing) or 'none'}"


def release_memory() -> None:
    """Give what nothing uses back to the GPU, for another process on it; nothing on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def peak_memory_gb() -> float:
    """Most memory this process has held: allocator's peak on a GPU, resident set on a CPU, GB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@cache
def _mkl_lacks_kernels() -> bool:
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkl.is_available():
        return False
    processors = Path("/proc/cpuinfo")
    is_amd = processors.is_file() and "AuthenticAMD" in processors.read_text()
    return is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


@contextmanager
def cpu() -> Iterator[None]:
    """Adapt Megatron-Core to the CPU for the duration of the context; nothing where CUDA is."""
    if torch.cuda.is_available():
        yield
        return
    with ExitStack() as stack:
        replacements: dict[str, Any] = {
            "current_device": lambda: _CPU,
            "synchronize": lambda *_: None,
            "empty_cache": lambda: None,
            "manual_seed": lambda seed: torch.manual_seed(seed),
            "get_rng_state": lambda *_: torch.get_rng_state(),
            "set_rng_state": lambda state, *_: torch.set_rng_state(state),
            **{missing: _refuse(missing) for missing in _UNADAPTED},
            **{missing: _refuse_class(missing) for missing in _UNADAPTED_CLASSES},
        }
        for attribute, replacement in replacements.items():
            stack.enter_context(patch.object(torch.cuda, attribute, replacement))
        stack.enter_context(patch.object(torch.Tensor, "cuda", _stay))
        stack.enter_context(patch.object(torch.nn.Module, "cuda", _stay))
        stack.enter_context(patch.object(torch.Tensor, "type", _cuda_typed(torch.Tensor.type)))
        # Megatron compiles functions where it defines them: seconds of imports, and a C++ compiler
        # when one of them is called.
        stack.enter_context(patch.object(torch, "compile", _as_written))
        stack.enter_context(_OnCpu())
        # Megatron's warnings are silenced by its modules' names, and this one now comes from here.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not")
        rng = importlib.import_module(_RNG)
        stack.enter_context(patch.object(rng, "_get_cuda_rng_state", _get_rng_state))
        stack.enter_context(patch.object(rng, "_set_cuda_rng_state", _set_rng_state))
        dispatch = importlib.import_module(_DISPATCH)
        experts = dispatch.MoEAlltoAllTokenDispatcher
        for collective, adapt in _UNEVEN.items():
            stand_in = adapt(getattr(dispatch, collective))
            stack.enter_context(patch.object(dispatch, collective, stand_in))
        # Where there is a stream already, it makes none; what it would copy is on the host.
        stack.enter_context(patch.object(experts, "cuda_dtoh_stream", _CPU))
        stack.enter_context(patch.object(experts, "_maybe_dtoh_and_synchronize", _counts_on_host))
        yield


@contextmanager
def unadapted() -> Iterator[None]:
    """Within `cpu`: torch's functions as they are, for thousands of calls that name no device.

    What `cpu` changes costs every call two microseconds, reading a tensor's shape included.
    """
    # torch has no other way out of a mode.
    with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]
        yield


class _OnCpu(TorchFunctionMode):
    """Sends factory calls and moves that name the CUDA device to the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # fmt: skip
        # Every call of torch in a training comes through here.
        named = kwargs or {}
        if func is torch.Tensor.to:
            args = [_CPU if _names_cuda(value) else value for value in args]
        if "device" in named and _names_cuda(named["device"]):
            named = {**named, "device": _CPU}
        return func(*args, **named)


def _names_cuda(value: object) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.startswith("cuda")


def _as_written(function: Callable[..., Any] | None = None, **_: Any) -> Any:  # noqa: ANN401
    """Stands in for torch.compile, called or used as a decorator with options."""
    return _as_written if function is None else function


def _stay(self: Any, *_: Any, **__: Any) -> Any:  # noqa: ANN401 - stands in for .cuda()
    return self


def _cuda_typed(original: Callable[..., Any]) -> Callable[..., Any]:
    """Tensor.type() that answers with CUDA's names, which Megatron's optimizer compares with."""

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        answer = original(self, *args, **kwargs)
        return _CUDA_TYPE_NAMES.get(answer, answer) if isinstance(answer, str) else answer

    return type_


def _get_rng_state(*_: Any, **__: Any) -> torch.Tensor:  # noqa: ANN401 - Megatron's arguments
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:  # noqa: ANN401
    torch.set_rng_state(state)


def _counts_on_host(self: Any, _: str, tokens_per_expert: Any = None) -> Any:  # noqa: ANN401
    """Stands in for the copy of token counts to the host, which leaves them as numpy arrays."""
    for attribute in ("input_splits", "output_splits", "output_splits_tp"):
        if isinstance(value := getattr(self, attribute), torch.Tensor):
            setattr(self, attribute, value.numpy())
    return tokens_per_expert


def _gather_unevenly(even: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Gather of different numbers of rows by one of equal numbers, which is all that gloo has."""

    def gather(
        rows: torch.Tensor, group: ProcessGroup, output_split_sizes: Sequence[int] | None = None
    ) -> torch.Tensor:
        if output_split_sizes is None:
            return even(rows, group=group)
        most = max(1, *output_split_sizes)
        parts = even(_filled_up(rows, most), group=group).split(most)
        return torch.cat([p[:n] for p, n in zip(parts, output_split_sizes, strict=True)])

    return gather


def _scatter_unevenly(even: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Sum and scatter of different numbers of rows, like `_gather_unevenly`."""

    def scatter(
        rows: torch.Tensor, group: ProcessGroup, input_split_sizes: Sequence[int] | None = None
    ) -> torch.Tensor:
        if input_split_sizes is None:
            return even(rows, group=group)
        most = max(1, *input_split_sizes)
        parts = [_filled_up(part, most) for part in rows.split(list(input_split_sizes))]
        return even(torch.cat(parts), group=group)[: input_split_sizes[group.rank()]]

    return scatter


def _filled_up(rows: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([rows, rows.new_zeros(count - rows.shape[0], *rows.shape[1:])])


_UNEVEN = {
    "gather_from_sequence_parallel_region": _gather_unevenly,
    "reduce_scatter_to_sequence_parallel_region": _scatter_unevenly,
}


def _refuse(attribute: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:  # noqa: ANN401
        raise PlatformError(
            f"torch.cuda.{attribute}",
            "a library asked for a CUDA facility that has no counterpart on this CPU.",
            "Use a layout without it, or a machine with a GPU.",
        )

    return refuse


def _refuse_class(attribute: str) -> type:
    """A class that cannot be instantiated; still a class, because libraries name it in types."""
    original = getattr(torch.cuda, attribute)
    return type(attribute, (original,), {"__new__": _refuse(attribute)})
