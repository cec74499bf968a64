import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from megatron_reason.config.train import CheckpointConfig, KeepConfig
from megatron_reason.engine import checkpoint_folder as files
from megatron_reason.errors import CheckpointError, DataError
from tests.distributed import spawn
from tests.engine import invariance


def trainable_of(folder: Path) -> Any:
    from megatron_reason.config.model import ModelConfig
    from megatron_reason.config.parallel import ParallelConfig
    from megatron_reason.config.train import OptimConfig
    from megatron_reason.engine.startup import load_model, make_trainable
    from megatron_reason.engine.topology import init_topology

    parallel = ParallelConfig()
    topology = init_topology(parallel, seed=1)
    model = ModelConfig(path="tiny", dtype="float32")
    stage = load_model(model, folder / "model", parallel, topology)
    return make_trainable(stage, OptimConfig(lr=1e-3), topology)


def train_while_saving(rank: int, world_size: int, folder: Path, portable: bool) -> None:
    from megatron_reason.engine.checkpoint import Progress, load_latest
    from megatron_reason.engine.checkpoint_saver import CheckpointSaver

    trainable = trainable_of(folder)
    checkpoints = folder / f"portable-{portable}"
    config = CheckpointConfig(portable=portable, keep=KeepConfig(last=2))
    before = [parameter.detach().clone() for parameter in trainable.model.parameters()]
    with CheckpointSaver(trainable, checkpoints, config, "{}") as saver:
        saver.poll()
        saver.begin(Progress(1, {"demo": 4}, {"seed": "1"}, tokens=7))
        assert not files.complete(checkpoints)
        for parameter in trainable.model.parameters():
            parameter.data.mul_(2)
        for optimizer in [trainable.optimizer]:
            for state in optimizer.optimizer.state.values():
                state["exp_avg"].add_(1)
        saver.begin(Progress(2, {"demo": 8}, {"seed": "1"}))
        assert [path.name for path in files.complete(checkpoints)] == ["iter_0000001"]
    assert [path.name for path in files.complete(checkpoints)] == ["iter_0000001", "iter_0000002"]

    torch.distributed.barrier()
    if rank == 0:
        newest = files.target_of(checkpoints, 2)
        newest.rename(checkpoints / "away")
    torch.distributed.barrier()
    progress = load_latest(trainable, checkpoints, {"seed": "1"})
    assert progress is not None
    assert (progress.update, progress.consumed, progress.tokens) == (1, {"demo": 4}, 7)
    for parameter, value in zip(trainable.model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=0, atol=0)
    for state in trainable.optimizer.optimizer.state.values():
        assert not state["exp_avg"].any()


@pytest.mark.parametrize("portable", [True, False])
def test_a_save_holds_what_was_true_when_it_began(tmp_path: Path, portable: bool) -> None:
    invariance.make_model(tmp_path / "model", tied=True)
    spawn(train_while_saving, 2, tmp_path, portable)


def lose_a_writer(rank: int, world_size: int, folder: Path) -> None:
    from megatron_reason.engine import checkpoint_writer
    from megatron_reason.engine.checkpoint import Progress
    from megatron_reason.engine.checkpoint_saver import CheckpointSaver

    trainable = trainable_of(folder)
    config = CheckpointConfig(portable=False)
    saver = CheckpointSaver(trainable, folder / "checkpoints", config, "{}")
    saver.begin(Progress(1, {}, {}))
    saver.finish()
    sums = checkpoint_writer.sums_of if rank == 0 else lambda *_, **__: time.sleep(60)
    with patch.object(checkpoint_writer, "sums_of", sums):
        saver.begin(Progress(2, {}, {}))
    assert saver._pending is not None
    saver.poll()
    assert saver._pending is not None
    if rank == 1:
        saver._pending.writer.cancel()
    with pytest.raises(CheckpointError, match="could not be written"):
        saver.finish()
    saver.finish()
    assert [path.name for path in files.complete(folder / "checkpoints")] == ["iter_0000001"]
    assert not [*(folder / "checkpoints").glob(".iter*")]


def test_a_writer_that_is_killed_fails_the_save_on_every_rank(tmp_path: Path) -> None:
    invariance.make_model(tmp_path / "model", tied=True)
    spawn(lose_a_writer, 2, tmp_path)


def fail_after_a_save(saver: Any, progress: Any, error: DataError) -> None:
    with saver:
        saver.begin(progress)
        raise error


def pass_errors(rank: int, world_size: int, folder: Path) -> None:
    from megatron_reason.engine.checkpoint import Progress
    from megatron_reason.engine.checkpoint_saver import CheckpointSaver

    trainable = trainable_of(folder)
    config = CheckpointConfig(portable=False)
    for update, everywhere in ((1, True), (2, False)):
        error = DataError("here", "something is wrong.", "Mend it.")
        error.on_every_rank = everywhere
        saver = CheckpointSaver(trainable, folder / "checkpoints", config, "{}")
        with pytest.raises(DataError):
            fail_after_a_save(saver, Progress(update, {}, {}), error)
        dist.barrier()
    assert [path.name for path in files.complete(folder / "checkpoints")] == ["iter_0000001"]


def read_another_versions(rank: int, world_size: int, folder: Path) -> None:
    from megatron_reason.engine import checkpoint
    from megatron_reason.engine.checkpoint_saver import CheckpointSaver

    trainable = trainable_of(folder)
    config = CheckpointConfig(portable=False)
    with CheckpointSaver(trainable, folder / "checkpoints", config, "{}") as saver:
        saver.begin(checkpoint.Progress(1, {}, {}))
    with (
        patch.object(checkpoint, "read_json", lambda _: {"update": 1, "layout": "TP 1 x PP 1"}),
        pytest.raises(CheckpointError, match=r"lacks adamw_steps, sharding: another version"),
    ):
        checkpoint.load_latest(trainable, folder / "checkpoints", {})


def test_a_checkpoint_of_another_version_is_named(tmp_path: Path) -> None:
    invariance.make_model(tmp_path / "model", tied=True)
    spawn(read_another_versions, 1, tmp_path)


def test_an_error_that_every_rank_has_lets_the_save_end_and_one_ranks_own_drops_it(
    tmp_path: Path,
) -> None:
    """Who waited for ranks that do not know of the error would wait for ever."""
    invariance.make_model(tmp_path / "model", tied=True)
    spawn(pass_errors, 2, tmp_path)
