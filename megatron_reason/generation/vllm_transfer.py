"""What runs inside vLLM's workers: weights come from the trainer's memory into a live model.

vLLM has the interfaces (a weight-transfer engine, a worker extension) and loads tensors by Hugging
Face's names; here are the transports, for a trainer on the same machine and for one elsewhere.
Imported by vLLM's workers alone. Not here: who fills the memory (`buckets.py`,
`transports.py`), and the commands (`vllm_process.py`, `server_engine.py`).
"""

import signal
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from vllm.config import set_current_vllm_config
from vllm.distributed import get_tp_group
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.platforms import current_platform

from megatron_reason.errors import GenerationError
from megatron_reason.generation.broadcast import Meeting, Receiver
from megatron_reason.generation.bucket_server import Address, fetch
from megatron_reason.generation.buckets import (
    BROADCAST,
    SHARED_MEMORY,
    TCP,
    Entry,
    SharedBuffer,
    checksum,
    mapped,
    size_of,
    views,
)
from megatron_reason.logs import get_logger

_log = get_logger(__name__)


class WorkerExtension:
    """What is added to vLLM's worker; its being imported registers the transport.

    vLLM reads its workers' replies in their order and stops at an error: those behind it would be
    taken for replies to the next call. What is done to the weights is therefore done here, where
    the last shard tells for all what any of them could not do.
    """

    _is_refused = False

    def begin_update(self) -> None:
        """Buckets will follow."""
        worker: Any = self
        self._together(worker.start_weight_update)

    def load_bucket(self, update_info: dict[str, Any]) -> None:
        """Load one bucket."""
        worker: Any = self
        self._together(partial(worker.update_weights, update_info))

    def end_update(self) -> None:
        """That was the last bucket."""
        worker: Any = self
        self._together(worker.finish_weight_update)

    def load_folder(self, folder: str) -> None:
        """Take the weights of a Hugging Face folder."""
        worker: Any = self
        self._together(partial(worker.reload_weights, weights_path=folder))

    def answer(self) -> None:
        """Do nothing, which a worker that hangs cannot."""

    def join_trainer(self, meeting: dict[str, Any]) -> None:
        """Come to where the trainer waits for all workers; see `broadcast.Meeting`."""
        worker: Any = self
        self._together(partial(worker.init_weight_transfer_engine, {"meeting": meeting}))

    def abandon_update(self) -> None:
        """End an update whose trainer went away, or one that failed; nothing happens without one.

        Some weights are then new and some old, until all are loaded again. Without this nothing
        more is done to the weights after a failure.
        """
        self._is_refused = False
        self._together(self._abandon)

    def refresh_heads(self) -> None:
        """Pack every LM head's matrix anew, where vLLM packs at all.

        On CPU the linear layers keep a packed copy of their matrix. A reload packs each layer it
        loads; a head tied to the embedding is not loaded, and would go on with the old copy.
        """
        if current_platform.is_cpu():
            self._together(self._refresh_heads)

    def leave_signals_to_trainer(self) -> None:
        """Live on when a job is asked to save and leave: the trainer may need answers until then.

        Some SLURMs hand that signal to each process, and a shard's own would end it by SIGTERM.
        """
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)

    def _abandon(self) -> None:
        worker: Any = self
        with set_current_vllm_config(worker.vllm_config):
            worker.weight_transfer_engine.abandon_weight_update()
        worker.weight_transfer_engine.reset_weight_update_target()
        worker._weight_update_active = False

    def _refresh_heads(self) -> None:
        worker: Any = self
        for module in worker.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def _together(self, act: Callable[[], None]) -> None:
        """Act on every shard, or tell on the last of them what one could not do.

        What was sent before the failure was heard of is refused without a look at it: of the shards
        only some could begin with it, and would wait for the others.

        Raises:
            GenerationError: a shard could not act, or could not before.
        """
        group = get_tp_group()
        if self._is_refused:
            if group.is_last_rank:
                raise GenerationError("weights", "those before failed.", "See their error.")
            return
        if group.world_size == 1:
            act()
            return
        failure: Exception | None = None
        try:
            act()
        except Exception as error:  # noqa: BLE001 - raised by the last shard, where vLLM hears it
            _log.exception("shard %d of the model", group.rank_in_group)
            failure = error
        told = None if failure is None else f"{type(failure).__name__}: {failure}"
        found: list[str | None] = [None] * group.world_size
        dist.all_gather_object(found, told, group=group.cpu_group)
        failed = [f"shard {shard}: {text}" for shard, text in enumerate(found) if text]
        self._is_refused = bool(failed)
        if failed and group.is_last_rank:
            raise GenerationError("weights", failed[0], "See the engine's log.") from failure


@dataclass
class Joining(WeightTransferInitInfo):
    """Where workers meet the trainer before the first bucket, if they have to."""

    meeting: dict[str, Any]


@dataclass
class MappedBucket(WeightTransferUpdateInfo):
    """In which shared memory a bucket lies and what is in it."""

    path: str
    entries: list[Entry]


@dataclass
class RemoteBucket(WeightTransferUpdateInfo):
    """From where a bucket can be fetched and what is in it; both as HTTP brings them."""

    address: dict[str, Any]
    entries: list[dict[str, Any]]


@dataclass
class SentBucket(WeightTransferUpdateInfo):
    """What is in the bucket that is sent next, as HTTP brings it."""

    entries: list[dict[str, Any]]


Info = TypeVar("Info", bound=WeightTransferUpdateInfo)


class BucketTransfer(WeightTransferEngine[Joining, Info], Generic[Info]):
    """Loads buckets of tensors that the trainer's process holds."""

    init_info_cls = Joining

    @abstractmethod
    def bucket(self, info: Info) -> tuple[torch.Tensor, list[Entry]]:
        """The bytes of a bucket, and what is in it."""

    def init_transfer_engine(self, init_info: Joining) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Have layers take new tensors and process them once they are complete."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one bucket; vLLM's own version waits for an accelerator, which may not be there."""
        self.receive_weights(self.parse_update_info(update_info))
        if not current_platform.is_cpu():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Info) -> None:
        """Check one bucket and load it.

        Raises:
            GenerationError: other bytes than were put there, or a bucket that could not be had.
        """
        memory, entries = self.bucket(update_info)
        tensors = dict(zip(entries, views(memory, entries), strict=True))
        for entry, tensor in tensors.items():
            if (found := checksum(tensor)) != entry.checksum:
                raise GenerationError(
                    entry.name,
                    f"its checksum is {found:08x} in the engine's process and {entry.checksum:08x} "
                    "in the trainer's.",
                    "Report this; the transport is broken.",
                )
        model: Any = self.model
        model.load_weights(
            [(entry.name, tensor.to(self.device)) for entry, tensor in tensors.items()]
        )
        self._keep_pending(memory)

    def finish_weight_update(self) -> None:
        """Put the layers back to work."""
        finalize_layerwise_reload(self.model, self.model_config)

    def abandon_weight_update(self) -> None:
        """Put the layers back to work, those that are not complete as they were before."""
        layers = [get_layerwise_info(layer) for layer in self.model.modules()]
        if not any(layer.can_load() for layer in layers):
            return
        for layer in layers:
            # vLLM would load half a layer into new memory; of one that got nothing it keeps all.
            layer.load_numel = 0
            layer.loaded_weights = []
        finalize_layerwise_reload(self.model, self.model_config)

    def _keep_pending(self, memory: torch.Tensor) -> None:
        """Copy what vLLM still refers to: tensors of layers that wait for others of their own."""
        for layer in self.model.modules():
            for _, call in get_layerwise_info(layer).loaded_weights:
                for name, value in call.arguments.items():
                    if isinstance(value, torch.Tensor) and _lies_in(value, memory):
                        call.arguments[name] = value.clone()

    def shutdown(self) -> None:
        """Nothing is held."""


class SharedMemoryTransfer(BucketTransfer[MappedBucket]):
    """For a trainer on the same machine."""

    update_info_cls = MappedBucket

    def bucket(self, info: MappedBucket) -> tuple[torch.Tensor, list[Entry]]:
        """The trainer's memory itself."""
        return mapped(info.path, size_of(info.entries)), info.entries


class TcpTransfer(BucketTransfer[RemoteBucket]):
    """For a trainer on another machine; of a sharded model the first shard fetches for all."""

    update_info_cls = RemoteBucket

    def bucket(self, info: RemoteBucket) -> tuple[torch.Tensor, list[Entry]]:
        """A copy of the trainer's memory."""
        entries = [Entry.from_json(entry) for entry in info.entries]
        address, size = Address(**info.address), size_of(entries)
        if get_tp_group().world_size == 1:
            memory = torch.empty(size, dtype=torch.uint8)
            fetch(address, memory)
            return memory, entries
        return self._shared(address, size), entries

    def _shared(self, address: Address, size: int) -> torch.Tensor:
        """One copy for the shards of a machine; it stays until all have answered for the bucket."""
        group = get_tp_group()
        if not group.is_first_rank:
            path = group.broadcast_object()
            if path is None:
                raise GenerationError("a bucket", "shard 0 could not fetch it.", "See its error.")
            return mapped(path, size)
        path = None
        try:
            memory = self._buffer.room(size)
            fetch(address, memory)
            path = self._buffer.path
        finally:
            group.broadcast_object(path)
        return memory

    @cached_property
    def _buffer(self) -> SharedBuffer:
        return SharedBuffer()


class BroadcastTransfer(BucketTransfer[SentBucket]):
    """For a trainer on another machine, which sends to all workers of all servers at once."""

    update_info_cls = SentBucket
    _receiver: Receiver | None = None

    def init_transfer_engine(self, init_info: Joining) -> None:
        """Join the trainer's group, and leave that of any trainer before."""
        self._receiver = None
        self._receiver = Receiver(Meeting(**init_info.meeting), get_tp_group().rank_in_group)

    def bucket(self, info: SentBucket) -> tuple[torch.Tensor, list[Entry]]:
        """The next bucket, in this worker's memory."""
        entries = [Entry.from_json(entry) for entry in info.entries]
        if self._receiver is None:
            raise GenerationError("a bucket", "no trainer's group was joined.", "Start again.")
        memory = torch.empty(size_of(entries), dtype=torch.uint8, device=self.device)
        self._receiver.receive(memory)
        return memory, entries


def _lies_in(tensor: torch.Tensor, memory: torch.Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()


WeightTransferEngineFactory.register_engine(SHARED_MEMORY, SharedMemoryTransfer)
WeightTransferEngineFactory.register_engine(TCP, TcpTransfer)
WeightTransferEngineFactory.register_engine(BROADCAST, BroadcastTransfer)
