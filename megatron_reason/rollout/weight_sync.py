"""The trainer's weights into the engine that makes its rollouts, and the proof that they arrived.

Every rank of the trainer takes part: shards go to rank 0 tensor by tensor, rank 0 hands them to the
engine bucket by bucket. The engine compares checksums; then both sides score one probe sequence.
An engine that dies is started again and gets everything again. Not here: how tensors reach the
engine's process (`generation`), and which shards make up a tensor (`models/exporter.py`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_reason import platform
from megatron_reason.config.sync import SyncConfig
from megatron_reason.engine.forward import PLAIN, statistics_step
from megatron_reason.engine.packing import pack
from megatron_reason.engine.prepass import forward_only
from megatron_reason.errors import EngineDiedError, GenerationError, ReasonError, of_system
from megatron_reason.generation.base import Engine
from megatron_reason.generation.hf_folder import vocabulary_fingerprint
from megatron_reason.generation.probe import probe_sequence
from megatron_reason.logs import get_logger
from megatron_reason.models.build import bare
from megatron_reason.models.checkpoint_files import Stored, open_checkpoint
from megatron_reason.models.exporter import TensorStream
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.topology import Topology

_LOG = get_logger(__name__)
_MIB = 1 << 20
_ALIGNMENT = 64
T = TypeVar("T")


@dataclass(frozen=True)
class SyncReport:
    """What one transfer took, and how far engine and trainer are apart after it."""

    version: int
    """Version of the weights."""
    num_bytes: int
    """Bytes of all tensors."""
    num_buckets: int
    """Parts in which they travelled."""
    seconds: float
    """From the first tensor's gathering until the engine was ready to answer; without the probe."""
    probe_seconds: float
    """What scoring the probe on both sides took."""
    probe_difference: float
    """Mean |difference| of the probe's log-probs, in nats."""
    probe_largest: float
    """Largest |difference|, in nats."""

    def metrics(self) -> dict[str, float]:
        """The same under the names that are logged."""
        return {
            "time/sync": self.seconds + self.probe_seconds,
            "sync/gb_per_s": self.num_bytes / 1e9 / self.seconds,
            "sync/probe_abs_diff": self.probe_difference,
            "sync/probe_abs_diff_max": self.probe_largest,
        }


class _Order(StrEnum):
    """What rank 0 tells those that stand by."""

    PUSH = "push"
    DONE = "done"


@dataclass(frozen=True)
class _Arrival:
    seconds: float
    probe_seconds: float
    probe_difference: float
    probe_largest: float


class WeightSync:
    """The way of weights from a parallel model to one engine; all ranks make it and call it alike.

    Args:
        stage: this rank's pipeline stage, bare or inside Megatron's wrappers.
        hf_folder: folder it was imported from.
        topology: this rank's place.
        engine: the engine on rank 0, None on every other rank.
        config: size of the buckets, tolerance.
        probe: token ids that both sides score, as far as the engine's context goes; None takes a
            short text.

    Raises:
        GenerationError: an engine with another vocabulary.
    """

    def __init__(
        self,
        stage: nn.Module,
        hf_folder: Path,
        *,
        topology: Topology,
        engine: Engine | None,
        config: SyncConfig | None = None,
        probe: Sequence[int] | None = None,
    ) -> None:
        assert (engine is not None) == (topology.rank == 0), "rank 0 holds the engine, nobody else"
        self._stage = stage
        self._topology = topology
        self._engine = engine
        self._config = config or SyncConfig()
        self._version: int | None = None
        self._group: dist.ProcessGroup | None = None
        if topology.world_size > 1:
            # Orders are waited for as long as rank 0 generates: not on NCCL, and with patience.
            patience = timedelta(seconds=self._config.standby_timeout_s)
            group: Any = dist.new_group(backend="gloo", timeout=patience)
            self._group = group
        is_near = engine is not None and engine.takes_from_device
        device = platform.device() if is_near else torch.device("cpu")
        with open_checkpoint(hf_folder) as source:
            self._stream = TensorStream(bare(stage), source, topology, device)
        self._plan = _plan(self._stream.tensors, self._config.bucket_mb * _MIB)
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)
        refusal = _unlike(engine, hf_folder) if engine is not None else None
        if (refusal := self._shared(refusal)) is not None:
            raise refusal
        wanted = tuple(probe or probe_sequence(hf_folder))
        self._probe = wanted[: self._shared(_longest_prompt(engine) if engine else None)]

    def push(self, version: int) -> SyncReport:
        """Make the engine answer with the model's present weights, and check that it does.

        Args:
            version: what completions are stamped with from now on.

        Returns:
            What rank 0 measured, on every rank.

        Raises:
            GenerationError: the engine died too often, or refused the tensors; or its log-probs of
                the probe differ from the trainer's.
        """
        started_s = time.monotonic()
        trainer_N = self._trainer_logprobs()
        trainer_s = time.monotonic() - started_s
        while (arrival := self._attempt(version, trainer_N)) is None:
            _LOG.info("the weights are pushed again")
        self._version = version
        return SyncReport(
            version=version,
            num_bytes=sum(stored.nbytes for stored in self._stream.tensors.values()),
            num_buckets=len(self._plan),
            seconds=arrival.seconds,
            probe_seconds=trainer_s + arrival.probe_seconds,
            probe_difference=arrival.probe_difference,
            probe_largest=arrival.probe_largest,
        )

    def run(self, action: Callable[[Engine], T]) -> T | None:
        """Do something with the engine on rank 0, while all ranks stand by to push weights again.

        Without this an engine that dies cannot get back a trainer's weights, and generating fails.
        The model must not have changed since the last `push`.

        Args:
            action: what rank 0 does, for instance generate.

        Returns:
            Its result on rank 0, None elsewhere.

        Raises:
            ReasonError: what `action` raised, on every rank; an OSError becomes one.
        """
        if self._engine is None:
            while self._shared(None) is _Order.PUSH:
                # Rank 0 gets the same error, and says what follows from it.
                with suppress(ReasonError):
                    self._push_again()
            return None

        def refill() -> None:
            self._shared(_Order.PUSH)
            self._push_again()

        self._engine.refill = refill
        try:
            result = action(self._engine)
        except ReasonError as error:
            self._shared(error)
            raise
        except OSError as error:
            self._shared(known := of_system(error))
            raise known from error
        finally:
            self._engine.refill = None
        self._shared(_Order.DONE)
        return result

    def _push_again(self) -> None:
        assert self._version is not None, "an engine that never got weights asks for them again"
        self.push(self._version)

    def _attempt(self, version: int, trainer_N: Sequence[float]) -> _Arrival | None:
        """Send everything once and probe; None if the engine died and has to get it again."""
        buckets = self._buckets()
        if self._engine is None:
            _exhaust(buckets)
            return self._shared(None)
        outcome: _Arrival | ReasonError | None
        # A death in here is met by the next attempt, not by an order to push.
        refill, self._engine.refill = self._engine.refill, None
        try:
            outcome = self._arrival(self._engine, buckets, version, trainer_N)
        except EngineDiedError as error:
            outcome = self._restarted(error, buckets)
        except ReasonError as error:
            _exhaust(buckets)
            outcome = error
        except OSError as error:
            _exhaust(buckets)
            outcome = of_system(error)
        finally:
            self._engine.refill = refill
        self._shared(outcome)
        if isinstance(outcome, ReasonError):
            raise outcome
        return outcome

    def _arrival(
        self, engine: Engine, buckets: Iterator[Mapping[str, Tensor]], version: int,
        trainer_N: Sequence[float],
    ) -> _Arrival:  # fmt: skip
        """Hand everything to the engine and compare log-probs of the probe.

        Raises:
            GenerationError: they differ by more than the tolerance, or are not even numbers.
        """
        started_s = time.monotonic()
        with platform.unadapted():
            engine.update_weights(buckets, version=version)
        moved_s = time.monotonic()
        # Every copy has to have got them: one server of many may have been left out.
        scored = torch.tensor(engine.score([self._probe] * engine.num_copies))
        gap_CN = (scored - torch.tensor(trainer_N)).abs()
        mean, largest = gap_CN.mean(1).max().item(), gap_CN.max().item()
        if not mean <= self._config.probe_tolerance:
            raise GenerationError(
                "weight sync",
                f"after the transfer the engine's log-probs of the probe differ from the trainer's "
                f"by {mean:.4f} nats on average and {largest:.4f} at most; the mean may be "
                f"{self._config.probe_tolerance}.",
                "Find out who is wrong: mreason doctor --model DIR. If the data type explains it, "
                "raise rollout.sync.probe_tolerance.",
            )
        return _Arrival(moved_s - started_s, time.monotonic() - moved_s, mean, largest)

    def _restarted(self, because: EngineDiedError, buckets: Iterator[object]) -> ReasonError | None:
        """Start the engine again, once the other ranks have got rid of what they send."""
        assert self._engine is not None, "rank 0 alone has an engine"
        _exhaust(buckets)
        try:
            self._engine.restart(because)
        except ReasonError as error:
            return error
        except OSError as error:
            return of_system(error)
        return None

    def _buckets(self) -> Iterator[Mapping[str, Tensor]]:
        """Every tensor once, in the plan's buckets, on rank 0; on other ranks nothing.

        The tensors of a bucket are valid until the next is asked for.
        """
        for names in self._plan:
            held = {name: self._stream.held(name) for name in names}
            apart = [name for name, tensor in held.items() if tensor is None]
            room = self._room(apart) if self._topology.rank == 0 else {}
            for name in apart:
                self._stream.fill(name, room.get(name))
            if self._topology.rank == 0:
                yield {name: room[name] if whole is None else whole for name, whole in held.items()}

    def _room(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Memory for those tensors of a bucket that are put together, the same for each bucket."""
        tensors: dict[str, Tensor] = {}
        end = 0
        if _size(self._stream.tensors, names) > self._buffer.numel():
            self._buffer = self._buffer.new_empty(_size(self._stream.tensors, names))
        for name in names:
            stored = self._stream.tensors[name]
            flat = self._buffer[end : end + stored.nbytes]
            tensors[name] = flat.view(stored.dtype).view(stored.shape)
            end += _aligned(stored.nbytes)
        return tensors

    def _trainer_logprobs(self) -> list[float]:
        """The trainer's log-probability of each token of the probe but the first, on every rank."""
        sample = TokenizedSample("probe", Role.DEMO, self._probe, 1)
        batch = pack([sample], rounding=self._topology.rounding).to(platform.device())
        step = statistics_step(self._topology, PLAIN, lambda stats, _: stats.logprob_T)
        collected = forward_only(self._stage, [batch], step)
        mine = collected[0][batch.supervised_N].tolist() if self._topology.speaks else None
        everywhere: list[list[float] | None] = [mine]
        if self._group is not None:
            everywhere = [None] * self._topology.world_size
            dist.all_gather_object(everywhere, mine, group=self._group)
        return next(logprobs for logprobs in everywhere if logprobs is not None)

    def _shared(self, mine: Any) -> Any:  # noqa: ANN401 - any picklable value
        """Rank 0's value, on every rank; raised on the others if it is an error."""
        if isinstance(mine, ReasonError):
            mine.on_every_rank = True
        if self._group is None:
            return mine
        box = [mine]
        dist.broadcast_object_list(box, src=0, group=self._group)
        if isinstance(box[0], ReasonError) and self._topology.rank != 0:
            raise box[0]
        return box[0]


def _plan(tensors: Mapping[str, Stored], bucket_bytes: int) -> list[list[str]]:
    """Names of consecutive tensors of at most `bucket_bytes` together, or one larger alone."""
    plan: list[list[str]] = []
    for name in tensors:
        if not plan or _size(tensors, [*plan[-1], name]) > bucket_bytes:
            plan.append([])
        plan[-1].append(name)
    return plan


def _size(tensors: Mapping[str, Stored], names: Sequence[str]) -> int:
    return sum(_aligned(tensors[name].nbytes) for name in names)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _exhaust(buckets: Iterator[object]) -> None:
    """Let the other ranks send what nobody wants any more, so that they are not left waiting."""
    for _ in buckets:
        pass


def _longest_prompt(engine: Engine) -> int:
    return int(engine.description["max_model_len"]) - 1


def _unlike(engine: Engine, hf_folder: Path) -> GenerationError | None:
    """Why an engine whose token ids mean something else is refused."""
    if engine.vocabulary == vocabulary_fingerprint(hf_folder):
        return None
    return GenerationError(
        str(hf_folder),
        "the engine's vocabulary is not this model's: the same token id would be another token.",
        "Start the engine on this folder.",
    )
