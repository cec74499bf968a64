import json
import pickle
from pathlib import Path

import pytest
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from megatron_reason.config.train import KeepConfig
from megatron_reason.engine import checkpoint_folder as files
from megatron_reason.errors import CheckpointError


def make(folder: Path, update: int, loss: float = 1.0) -> Path:
    """A whole checkpoint of two ranks, published."""
    partial = fill(files.partial_of(folder, update), update, loss)
    files.publish(partial, files.target_of(folder, update), update)
    return files.target_of(folder, update)


def fill(partial: Path, update: int, loss: float = 1.0) -> Path:
    """Its files, in the folder `partial`."""
    partial.mkdir(parents=True)
    for name in ("__0_0.distcp", "__1_0.distcp", "common.pt"):
        (partial / name).write_bytes(name.encode() * 100)
    places = {
        MetadataIndex(f"weight{rank}"): _StorageInfo(f"__{rank}_0.distcp", 1000, 200)
        for rank in range(2)
    }
    (partial / ".metadata").write_bytes(pickle.dumps(Metadata({}, storage_data=places)))
    state = {"update": update, "metrics": {"train/loss": loss}, "prompts": 7}
    (partial / files.STATE).write_text(json.dumps(state), encoding="utf-8")
    sums = files.sums_of(partial.iterdir(), durable=True)
    (partial / files.SUMS).write_text(json.dumps(sums), encoding="utf-8")
    return partial


def updates(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("iter_")) for path in files.complete(folder)]


def test_every_file_is_summed_by_exactly_one_rank_and_shards_by_their_writer() -> None:
    names = ["__0_0.distcp", "__0_1.distcp", "__3_0.distcp", "__7_0.distcp", "common.pt", "x.json"]
    shares = [files.share([Path(name) for name in names], rank, 4) for rank in range(4)]
    assert sorted(path.name for share in shares for path in share) == sorted(names)
    assert {"__0_0.distcp", "__0_1.distcp"} <= {path.name for path in shares[0]}
    assert "__3_0.distcp" in {path.name for path in shares[3]}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_damage_is_named(tmp_path: Path, world_size: int) -> None:
    def found(checkpoint: Path) -> list[str]:
        parts = [files.damage(checkpoint, rank, world_size) for rank in range(world_size)]
        return [part for part in parts if part]

    whole = make(tmp_path, 1)
    assert found(whole) == []
    short, flipped, gone = (make(tmp_path, update) for update in (2, 3, 4))
    shard = short / "__1_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert found(short) == ["__1_0.distcp has 1199 bytes instead of 1200"]
    (flipped / "common.pt").write_bytes(b"Common.pt" * 100)
    assert found(flipped) == ["common.pt has another checksum than when it was written"]
    (gone / "__0_0.distcp").unlink()
    assert found(gone) == ["__0_0.distcp is missing"]


@pytest.mark.parametrize(
    "content", [None, b"", b'{"a": [1', b"\xff\xfe", b"[]", b"{}", b'{"train_state.json": 1}']
)
def test_sums_that_cannot_be_read_are_damage(tmp_path: Path, content: bytes | None) -> None:
    whole = make(tmp_path, 1)
    (whole / files.SUMS).unlink()
    if content is not None:
        (whole / files.SUMS).write_bytes(content)
    assert files.damage(whole, 0, 1) == "files.json is missing or cannot be read"


def test_what_cannot_be_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    whole = make(tmp_path, 1)
    monkeypatch.setattr(files, "sums_of", failing)
    found = files.damage(whole, 0, 1)
    assert found is not None
    assert found.endswith("cannot be read: Input/output error")


@pytest.mark.parametrize("broken", [files.SUMS, files.STATE, "__1_0.distcp"])
def test_a_damaged_checkpoint_does_not_count_as_one_that_stays(tmp_path: Path, broken: str) -> None:
    for update in (1, 2, 3, 4):
        make(tmp_path, update)
    (files.target_of(tmp_path, 3) / broken).write_bytes(b"{")
    files.retire(tmp_path, KeepConfig(last=2))
    assert updates(tmp_path) == [2, 3, 4]


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ("__1_0.distcp", "__1_0.distcp has 1 bytes instead of 1200"),
        (files.STATE, "train_state.json has 1 bytes instead of"),
        (files.SUMS, "files.json is missing or cannot be read"),
        (".metadata", r"\.metadata has 1 bytes instead of"),
    ],
)
def test_what_is_not_as_written_gets_no_name(tmp_path: Path, broken: str, what: str) -> None:
    partial = fill(files.partial_of(tmp_path, 1), 1)
    (partial / broken).write_bytes(b"{")
    with pytest.raises(CheckpointError, match=f"could not be written: {what}"):
        files.publish(partial, files.target_of(tmp_path, 1), 1)
    assert updates(tmp_path) == []


@pytest.mark.parametrize(
    ("broken", "content", "what"),
    [
        ("__1_0.distcp", b"x" * 1199, "__1_0.distcp does not have the 1200 bytes"),
        ("__1_0.distcp", None, "__1_0.distcp does not have the 1200 bytes"),
        (".metadata", b"x", r"\.metadata cannot be read"),
        (".metadata", None, r"\.metadata cannot be read"),
    ],
)
def test_what_the_index_does_not_find_gets_no_name(
    tmp_path: Path, broken: str, content: bytes | None, what: str
) -> None:
    partial = fill(files.partial_of(tmp_path, 1), 1)
    (partial / broken).unlink()
    if content is not None:
        (partial / broken).write_bytes(content)
    (partial / files.SUMS).unlink()
    sums = files.sums_of(partial.iterdir(), durable=True)
    (partial / files.SUMS).write_text(json.dumps(sums), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"could not be written: {what}"):
        files.publish(partial, files.target_of(tmp_path, 1), 1)


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (KeepConfig(), [6]),
        (KeepConfig(last=3), [4, 5, 6]),
        (KeepConfig(every=2), [2, 4, 6]),
        (KeepConfig(best="train/loss"), [3, 6]),
        (KeepConfig(best="train/loss", best_is="highest"), [6]),
        (KeepConfig(last=2, every=4, best="train/loss"), [3, 4, 5, 6]),
        (KeepConfig(best="no/such"), [6]),
    ],
)
def test_what_is_kept(tmp_path: Path, keep: KeepConfig, left: list[int]) -> None:
    losses = {1: 3.0, 2: 2.0, 3: 1.0, 4: 4.0, 5: float("nan"), 6: 5.0}
    for update, loss in losses.items():
        make(tmp_path, update, loss)
    files.partial_of(tmp_path, 7).mkdir()
    files.retire(tmp_path, keep)
    assert updates(tmp_path) == left
    assert not files.partial_of(tmp_path, 7).exists()
    assert (tmp_path / files.LATEST).read_text() == "6\n"


def test_a_damaged_checkpoint_does_not_outlive_newer_work(tmp_path: Path) -> None:
    damaged = make(tmp_path, 12)
    make(tmp_path, 6)
    files.set_aside([damaged])
    make(tmp_path, 9)
    files.retire(tmp_path, KeepConfig())
    assert updates(tmp_path) == [9]
    assert (tmp_path / "damaged_iter_0000012").is_dir()


def test_an_unfinished_checkpoint_does_not_count(tmp_path: Path) -> None:
    make(tmp_path, 1)
    (make(tmp_path, 2) / files.STATE).unlink()
    assert updates(tmp_path) == [1]


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    files.require_space(tmp_path / "new", 1)
    with pytest.raises(CheckpointError, match=r"takes 1e\+09 GB; .* GB are free"):
        files.require_space(tmp_path / "new", 10**18)
