import json
from pathlib import Path

import pytest

from megatron_reason.files import (
    atomic_folder,
    atomic_path,
    hash_file,
    hash_text,
    read_json,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="half way"), atomic_path(target) as path:  # noqa: PT012
        path.write_text("ne")
        raise RuntimeError("half way")
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["b.txt"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("one", "two"):
        with atomic_folder(target) as folder:
            (folder / f"{content}.txt").write_text(content)
    assert [p.name for p in target.iterdir()] == ["two.txt"]
    with pytest.raises(RuntimeError, match="disk"), atomic_folder(target) as folder:  # noqa: PT012
        (folder / "three.txt").write_text("3")
        raise RuntimeError("disk")
    assert [p.name for p in target.iterdir()] == ["two.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_json_and_hashes(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"é": [1, 2.5]})
    assert read_json(path) == {"é": [1, 2.5]}
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, 2.5]}
    assert hash_file(path, 64) == hash_text(path.read_text(encoding="utf-8"), 64)
    assert len(hash_text("a")) == 16
    assert hash_text("a") != hash_text("b")
