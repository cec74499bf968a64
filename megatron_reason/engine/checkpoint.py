"""Saving and resuming a training run exactly.

Layout: `checkpoints/iter_0000010/` holds Megatron's distributed checkpoint and `train_state.json`;
`checkpoints/latest_checkpointed_iteration.txt` names the newest. A checkpoint is written under
another name and renamed when complete, so what carries the name can be loaded. Not here: the
export to Hugging Face (`models/exporter.py`).
"""

import queue
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch import Tensor

from megatron_reason.engine.startup import Trainable
from megatron_reason.errors import CheckpointError
from megatron_reason.files import read_json, write_json, write_text
from megatron_reason.logs import get_logger

_LOG = get_logger(__name__)
_LATEST = "latest_checkpointed_iteration.txt"
_STATE = "train_state.json"
_ADAMW_STEP = "adamw_step"
_SHARDING = {"distrib_optim_sharding_type": "dp_reshardable"}


@dataclass(frozen=True)
class Progress:
    """All of a run's state besides weights and optimizer."""

    update: int
    """Updates made."""
    consumed: Mapping[str, int]
    """Sequences of each role taken."""
    fingerprint: Mapping[str, str]
    """What the run is: hashes that must agree before it may be resumed, by name."""


def save_checkpoint(trainable: Trainable, folder: Path, progress: Progress, keep: int) -> Path:
    """Write a checkpoint; all ranks call it, and it is visible only when complete.

    Args:
        trainable: model and optimizer.
        folder: the run's `checkpoints` folder, shared by all ranks.
        progress: state after the last update.
        keep: most recent checkpoints left on disk.
    """
    target = folder / f"iter_{progress.update:07d}"
    partial = folder / f".iter_{progress.update:07d}.partial"
    if trainable.topology.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    _keep_results_in_process()
    dist_checkpointing.save(_sharded_state(trainable, is_loading=False), str(partial))
    dist.barrier()
    if trainable.topology.rank == 0:
        steps = [int(state["step"]) for state in _adamw_states(trainable)]
        write_json(partial / _STATE, {**asdict(progress), _ADAMW_STEP: max(steps, default=None)})
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        write_text(folder / _LATEST, f"{progress.update}\n")
        for old in _complete(folder)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return target


def load_latest(
    trainable: Trainable, folder: Path, fingerprint: Mapping[str, str]
) -> Progress | None:
    """Load the newest complete checkpoint of `folder` into `trainable`.

    Returns:
        The state to go on from, or None if there is no checkpoint.

    Raises:
        CheckpointError: the checkpoint belongs to a run with other settings; the message names
            which.
    """
    found = _complete(folder)
    if not found:
        return None
    stored = read_json(found[-1] / _STATE)
    adamw_step: int | None = stored.pop(_ADAMW_STEP)
    progress = Progress(**stored)
    if differing := sorted(
        name for name, value in fingerprint.items() if progress.fingerprint.get(name) != value
    ):
        raise CheckpointError(
            str(found[-1]),
            f"this checkpoint was made with another {', '.join(differing)}.",
            "Use the settings it was made with, or remove the folder to begin anew.",
        )
    _make_optimizer_state(trainable)
    sharded = _sharded_state(trainable, is_loading=True)
    state = cast(dict[str, Any], dist_checkpointing.load(sharded, str(found[-1])))
    trainable.model.module.load_state_dict(state["model"])
    trainable.optimizer.load_state_dict(state["optimizer"])
    if adamw_step is not None:
        for moments in _adamw_states(trainable):
            # One tensor each: Megatron gives all of them the same, which every step then counts up
            # as often as there are parameters.
            moments["step"] = torch.tensor(float(adamw_step))
    _LOG.info("resumed from %s after update %d", found[-1].name, progress.update)
    return progress


def _adamw_states(trainable: Trainable) -> list[dict[str, Tensor]]:
    """States of torch's AdamW that count steps; Megatron does not bring their counts back.

    The optimizers of Transformer Engine and apex count per parameter group, which it does restore.
    """
    optimizers = getattr(trainable.optimizer, "chained_optimizers", [trainable.optimizer])
    states = [state for optimizer in optimizers for state in optimizer.optimizer.state.values()]
    return [state for state in states if "step" in state]


def _make_optimizer_state(trainable: Trainable) -> None:
    """Create the moments that loading fills in place; AdamW makes them in its first step."""
    for optimizer in getattr(trainable.optimizer, "chained_optimizers", [trainable.optimizer]):
        optimizer._init_optimizer_states_with_dummy_values()


def _keep_results_in_process() -> None:
    """Let Megatron's writer hand its results back through a plain queue.

    By default it starts a manager process, which asynchronous saves need and ours do not: a rank
    killed with -9 would leave it behind for ever.
    """
    writer: Any = filesystem_async
    if writer._results_queue is None:
        writer._results_queue = queue.Queue()


def _complete(folder: Path) -> list[Path]:
    """Checkpoints that can be loaded, oldest first."""
    return sorted(path for path in folder.glob("iter_*") if (path / _STATE).is_file())


def _sharded_state(trainable: Trainable, *, is_loading: bool) -> dict[str, Any]:
    model: Any = trainable.model.module
    model_state = model.sharded_state_dict()
    optimizer_state = trainable.optimizer.sharded_state_dict(
        model_state, is_loading=is_loading, metadata=_SHARDING
    )
    return {"model": model_state, "optimizer": optimizer_state}
