"""Addresses are answered by the hub's real client, asking a server on this machine."""

import pytest

from megatron_reason.errors import DataError
from megatron_reason.schema.addresses import files_at, open_binary
from tests.hub import hub_of, use_hub

FILES = {
    "owner/set/README.md": b"# A card",
    "owner/set/.gitattributes": b"",
    "owner/set/a.parquet/train.arrow": b"",
    "owner/set/data/train-0.jsonl": b'{"a": 0}\n',
    "owner/set/data/train-1.jsonl": b'{"a": 1}\n',
    "owner/set/data/test-0.jsonl": b'{"a": 2}\n',
}
SUFFIXES = (".jsonl", ".parquet")


@pytest.fixture
def hub(monkeypatch):
    with hub_of(FILES, gated="closed") as address:
        use_hub(address, monkeypatch)
        yield address


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**", ["data/test-0.jsonl", "data/train-0.jsonl", "data/train-1.jsonl"]),
        ("data/train-*.jsonl", ["data/train-0.jsonl", "data/train-1.jsonl"]),
        ("*/train-1.jsonl", ["data/train-1.jsonl"]),
        ("data/test-0.jsonl", ["data/test-0.jsonl"]),
        ("", ["data/test-0.jsonl", "data/train-0.jsonl", "data/train-1.jsonl"]),
    ],
)
def test_an_address_stands_for_its_files_of_known_formats(hub, pattern, expected):
    found = files_at(f"hf://datasets/owner/set/{pattern}", SUFFIXES)
    assert found == [f"hf://datasets/owner/set/{path}" for path in expected]
    for file, path in zip(found, expected, strict=True):
        with open_binary(file) as stream:
            assert stream.read() == FILES[f"owner/set/{path}"]


def test_what_the_hub_does_not_give(hub, monkeypatch):
    with pytest.raises(DataError, match="there is no such file"):
        files_at("hf://datasets/owner/set/data/dev-*.jsonl", SUFFIXES)
    with pytest.raises(DataError, match=r"'\.md' is no known format"):
        files_at("hf://datasets/owner/set/README.md", SUFFIXES)
    with pytest.raises(DataError, match="the hub does not give this"):
        files_at("hf://datasets/owner/sets/**", SUFFIXES)
    with pytest.raises(DataError, match="log in"):
        files_at("hf://datasets/closed/set/**", SUFFIXES)
    with pytest.raises(DataError, match="the hub does not give this"):
        files_at("hf://datasets/*", SUFFIXES)
    with pytest.raises(DataError, match="the hub does not give this"):
        files_at("hf://*", SUFFIXES)
    with (
        pytest.raises(DataError, match="the hub does not give this"),
        open_binary("hf://datasets/owner/set/data/train-2.jsonl"),
    ):
        pass
    # What the reader finds wrong with a file is no fault of the hub.
    with (
        pytest.raises(OSError, match="Corrupt"),
        open_binary("hf://datasets/owner/set/data/train-1.jsonl"),
    ):
        raise OSError("Corrupt")
    use_hub("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(DataError, match="local copy"):
        files_at("hf://datasets/owner/set/**", SUFFIXES)


def test_files_and_folders_of_this_machine(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "card.md", "state.json", "cache-1.arrow"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "folder.jsonl").mkdir()
    found = files_at(str(tmp_path), (*SUFFIXES, ".json", ".arrow"))
    assert found == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    with pytest.raises(DataError, match=r"ends in one of \.jsonl, \.parquet"):
        files_at(str(tmp_path / "card.md"), SUFFIXES)
    with pytest.raises(DataError, match="there is no such file"):
        files_at(str(tmp_path / "none.jsonl"), SUFFIXES)
