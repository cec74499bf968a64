"""What a checkpoint of a training run holds, and resuming from it exactly, on any ranks.

Layout: `checkpoints/iter_0000010/` holds Megatron's distributed checkpoint, `train_state.json`,
`job.json` with the settings, `ahead.json` with what had been made for the next step, if anything,
and `files.json` with the sums of all other files;
`checkpoints/latest_checkpointed_iteration.txt` names the newest. Optimizer states are stored by
parameter, so that TP, PP and DP may change, or as Megatron holds them, so that DP may. No
random-number state is stored: nothing is drawn in an update, and the order of the data is a pure
function of what `Progress` holds. Not here: saving while training goes on (`checkpoint_saver.py`),
files and their names (`checkpoint_folder.py`), the export to Hugging Face (`models/exporter.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding
from torch import Tensor

from megatron_reason.engine import checkpoint_folder as files
from megatron_reason.engine.moments import inner_optimizers
from megatron_reason.engine.startup import Trainable
from megatron_reason.errors import CheckpointError
from megatron_reason.files import read_json
from megatron_reason.logs import get_logger

_LOG = get_logger(__name__)
Value = TypeVar("Value")
_ADAMW_STEPS = "adamw_steps"
_SHARDING = "sharding"
_LAYOUT = "layout"
_PORTABLE, _BY_BUCKET = "fully_reshardable", "dp_reshardable"
_FLOAT32_STATES = 3
"""Main weight, first and second moment: Megatron stores all three for every set of moments."""


@dataclass(frozen=True)
class Progress:
    """All of a run's state besides weights and optimizer."""

    update: int
    """Updates made."""
    consumed: Mapping[str, int]
    """Sequences of each role taken."""
    fingerprint: Mapping[str, str]
    """What the run is: hashes that must agree before it may be resumed, by name."""
    tokens: int = 0
    """Positions trained on, prompts included."""
    samples: int = 0
    """Sequences trained on."""
    prompts: int = 0
    """Prompts answered, where rollouts are made."""
    hard: Sequence[str] = ()
    """Problems that wait in the pool of those that nobody solved, newest first."""
    empty_steps: int = 0
    """Steps in a row without anything to learn from."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Means over the updates since the checkpoint before."""
    ahead: str = ""
    """What rank 0 had made for the next step already; empty elsewhere, and where it had nothing."""


def load_latest(
    trainable: Trainable, folder: Path, fingerprint: Mapping[str, str]
) -> Progress | None:
    """Load the newest undamaged checkpoint of `folder` into `trainable`.

    Returns:
        The state to go on from, or None if there is no checkpoint.

    Raises:
        CheckpointError: the checkpoint belongs to a run with other settings (the message names
            which), another version wrote it, or every one is damaged.
    """
    found = _newest_undamaged(folder, trainable)
    if found is None:
        return None
    stored = read_json(found / files.STATE)
    if missing := [key for key in (_ADAMW_STEPS, _SHARDING, _LAYOUT) if key not in stored]:
        raise CheckpointError(
            str(found),
            f"its {files.STATE} lacks {', '.join(missing)}: another version wrote it.",
            "Go on with that version, or remove the folder to begin anew.",
        )
    adamw_steps: list[int | None] = stored.pop(_ADAMW_STEPS)
    sharding, layout = stored.pop(_SHARDING), stored.pop(_LAYOUT)
    progress = Progress(**stored, ahead=_ahead(found, trainable))
    if sharding == _BY_BUCKET and layout != _layout(trainable):
        raise CheckpointError(
            str(found),
            f"it was saved for {layout} only; this run has {_layout(trainable)}.",
            "Resume on that layout, or save with train.checkpoint.portable: true.",
        )
    if differing := sorted(
        name for name, value in fingerprint.items() if progress.fingerprint.get(name) != value
    ):
        raise CheckpointError(
            str(found),
            f"this checkpoint was made with another {', '.join(differing)}.",
            "Use the settings it was made with, or remove the folder to begin anew.",
        )
    sharded = _sharded_state(trainable, sharding, is_loading=True)
    state = cast(dict[str, Any], dist_checkpointing.load(sharded, str(found)))
    trainable.model.module.load_state_dict(state["model"])
    for index, name in _each_moments(trainable):
        parts = _parts(state[name], trainable)
        for optimizer, part in zip(inner_optimizers(trainable.optimizer), parts, strict=True):
            _load_optimizer(optimizer, part, sharding, adamw_steps[index])
    if trainable.topology.rank == 0:
        # What interrupted the save, or damaged a newer one, may have left another name there.
        files.point_to(folder, progress.update)
    _LOG.info("resumed from %s after update %d", found.name, progress.update)
    return progress


def _ahead(checkpoint: Path, trainable: Trainable) -> str:
    path = checkpoint / files.AHEAD
    if trainable.topology.rank or not path.is_file():
        return ""
    return path.read_text(encoding="utf-8")


def load_weights(trainable: Trainable, checkpoint: Path) -> None:
    """Load the weights of a checkpoint of this run, and nothing else: not to be trained on."""
    model: Any = trainable.model.module
    state = dist_checkpointing.load({"model": model.sharded_state_dict()}, str(checkpoint))
    model.load_state_dict(cast(dict[str, Any], state)["model"])


def stored_state(trainable: Trainable, *, portable: bool) -> dict[str, Any]:
    """Model and optimizer as Megatron stores them; `portable` ones fit any layout."""
    state = _sharded_state(trainable, _sharding(portable=portable), is_loading=False)
    for _, name in _each_moments(trainable):
        # Where no gathered states are held nothing is left, and Megatron warns that ranks differ.
        parts = state.pop(name).items()
        kept = {key: part for key, part in parts if not (isinstance(part, dict) and not part)}
        state |= {name: kept} if kept else {}
    return state


def train_state(trainable: Trainable, progress: Progress, *, portable: bool) -> dict[str, Any]:
    """What `train_state.json` holds: all but `ahead`, which may be long."""
    steps = [
        max((int(state["step"]) for state in _adamw_states(trainable)), default=None)
        for _ in _each_moments(trainable)
    ]
    return {
        **{name: value for name, value in asdict(progress).items() if name != "ahead"},
        _ADAMW_STEPS: steps,
        _SHARDING: _sharding(portable=portable),
        _LAYOUT: _layout(trainable),
    }


def checkpoint_bytes(trainable: Trainable) -> int:
    """Bytes a checkpoint takes at most, to a few per cent; the same on every rank."""
    # Experts are replicated over fewer ranks than the rest; counting them so counts too much.
    states = 4 * _FLOAT32_STATES * trainable.moments.number
    mine = sum(
        parameter.numel() * (parameter.element_size() + states)
        for parameter in trainable.model.parameters()
        if trainable.topology.is_first_copy or not getattr(parameter, "allreduce", True)
    )
    total = torch.tensor(mine, dtype=torch.int64, device=trainable.device)
    dist.all_reduce(total)
    return int(total)


def _newest_undamaged(folder: Path, trainable: Trainable) -> Path | None:
    """Newest checkpoint whose files are as they were written; every rank gets the same."""
    topology = trainable.topology
    found = files.complete(folder)
    passed_over: list[Path] = []
    for path in reversed(found):
        mine = files.damage(path, topology.rank, topology.world_size)
        if not (wrong := [part for part in everywhere(mine, topology.world_size) if part]):
            if topology.rank == 0:
                files.set_aside(passed_over)
            dist.barrier()
            return path
        if topology.rank == 0:
            _LOG.warning(
                "%s is damaged and is passed over: %s", path, "; ".join(dict.fromkeys(wrong))
            )
        passed_over.append(path)
    if found:
        raise CheckpointError(
            str(folder),
            f"all {len(found)} checkpoints are damaged.",
            "Restore one from a backup, or remove the folder to begin anew.",
        )
    return None


def everywhere(mine: Value, world_size: int) -> list[Value]:
    """`mine` of every rank, in the order of ranks."""
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, mine)
    return parts


@torch.no_grad()
def _load_optimizer(
    optimizer: Any,  # noqa: ANN401
    state: dict[str, Any],
    sharding: str,
    adamw_step: int | None,
) -> None:
    """Load one distributed optimizer, with the step counts of torch's AdamW.

    Megatron looks for `step` among the stored tensors, where it is not; and what it sets is one
    tensor for all parameters, which every update then counts up as often as there are parameters.
    """
    if sharding == _PORTABLE:
        moments = state["param_state"]
        for moment in optimizer.optimizer.state.values():
            moment.pop("step", None)
        optimizer.load_parameter_state_from_fully_reshardable(moments)
    else:
        optimizer.load_state_dict(state)
    if adamw_step is not None:
        for moment in optimizer.optimizer.state.values():
            moment["step"] = torch.tensor(float(adamw_step))


def _sharding(*, portable: bool) -> str:
    return _PORTABLE if portable else _BY_BUCKET


def _layout(trainable: Trainable) -> str:
    topology = trainable.topology
    return f"TP {topology.tp_size} x PP {topology.pp_size}"


def _each_moments(trainable: Trainable) -> Iterator[tuple[int, str]]:
    """Each set of moments in turn, in use meanwhile, and the name of what is stored of it."""
    for index in range(trainable.moments.number):
        with trainable.moments.each(index):
            yield index, f"optimizer_{index}" if index else "optimizer"


def _adamw_states(trainable: Trainable) -> list[dict[str, Tensor]]:
    """States of torch's AdamW that count steps, of the moments in use.

    The optimizers of Transformer Engine and apex count per parameter group.
    """
    inner = inner_optimizers(trainable.optimizer)
    states = [state for one in inner for state in one.optimizer.state.values()]
    return [state for state in states if "step" in state]


def _make_optimizer_state(trainable: Trainable) -> None:
    """Create the moments in use, which AdamW makes in its first step; weights stay as they are."""
    for optimizer in inner_optimizers(trainable.optimizer):
        groups = optimizer.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = 0.0
        optimizer._init_optimizer_states_with_dummy_values()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
    for state in _adamw_states(trainable):
        state["step"].zero_()


def _sharded_state(trainable: Trainable, sharding: str, *, is_loading: bool) -> dict[str, Any]:
    metadata = {
        "distrib_optim_sharding_type": sharding,
        # Gather the states in host memory on one rank of each data-parallel group: the other way
        # is to gather them on every device.
        "distrib_optim_fully_reshardable_mem_efficient": True,
        "chained_optim_avoid_prefix": True,
    }
    model: Any = trainable.model.module
    state: dict[str, Any] = {"model": model.sharded_state_dict()}
    for index, name in _each_moments(trainable):
        if is_loading or not _adamw_states(trainable):
            _make_optimizer_state(trainable)
        with _without_gaps(trainable):
            state[name] = trainable.optimizer.sharded_state_dict(
                state["model"], is_loading=is_loading, metadata=metadata
            )
        _tidy(state[name], trainable, sharding)
        if index:
            add_prefix_for_sharding(state[name], f"{name}.")
    return state


def _tidy(optimizer_state: dict[Any, Any], trainable: Trainable, sharding: str) -> None:
    """Drop what Megatron would warn of, or what would not fit another layout."""
    for part in _parts(optimizer_state, trainable):
        # Ranks that hold no gathered states say None, and Megatron warns that they differ.
        if part["param_state"] is None:
            del part["param_state"]
        if sharding == _PORTABLE:
            # The rest stands in the job's settings, once for each of the optimizers that Megatron
            # chains: another number of them on another layout could not read it.
            for name in part.keys() - {"param_state"}:
                del part[name]


@contextmanager
def _without_gaps(trainable: Trainable) -> Iterator[None]:
    """Let Megatron cut parameters out of gathered optimizer states at the right places.

    It gathers the states of a buffer without the padding at the ends of its buckets, and then cuts
    at offsets that count that padding. A tied embedding under PP has a bucket of its own: unless
    its size is a multiple of 128, everything behind it would be cut in the wrong place.
    """
    model: Any = trainable.model
    buffers: list[Any] = [*model.buffers, *model.expert_parallel_buffers]
    kept = [buffer.param_index_map for buffer in buffers]
    for buffer, places in zip(buffers, kept, strict=True):
        padding = [bucket.grad_data.numel() - bucket.numel_unpadded for bucket in buffer.buckets]
        before = [sum(padding[:index]) for index in range(len(padding))]
        buffer.param_index_map = {
            parameter: (start - before[bucket], end - before[bucket], bucket)
            for parameter, (start, end, bucket) in places.items()
        }
    try:
        yield
    finally:
        for buffer, places in zip(buffers, kept, strict=True):
            buffer.param_index_map = places


def _parts(optimizer_state: dict[Any, Any], trainable: Trainable) -> list[dict[str, Any]]:
    """State of each of the optimizers that Megatron chains."""
    number = len(inner_optimizers(trainable.optimizer))
    return [optimizer_state[n] for n in range(number)] if number > 1 else [optimizer_state]
