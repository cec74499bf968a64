import pytest

from megatron_reason.errors import DataError
from megatron_reason.pipeline.manifest import (
    Manifest,
    installed_versions,
    is_done,
    now,
    read_manifest,
    write_manifest,
)


def test_a_stage_is_done_when_its_manifest_has_the_planned_hash(tmp_path):
    manifest = Manifest(
        name="a", kind="curate", hash="h1", inputs={"b": "h2"}, num_rows=3, counts={"bad": 1},
        seconds=0.5, versions=installed_versions(), finished_at=now(),
    )  # fmt: skip
    assert not is_done(tmp_path, "h1")
    assert read_manifest(tmp_path) is None
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert is_done(tmp_path, "h1")
    assert not is_done(tmp_path, "h2")
    assert {"python", "megatron_reason", "torch"} <= manifest.versions.keys()


def test_a_file_that_is_no_manifest_is_refused(tmp_path):
    (tmp_path / "stage.json").write_text('{"name": "a"}')
    with pytest.raises(DataError, match=r"stage\.json"):
        is_done(tmp_path, "h1")
