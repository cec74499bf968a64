import sys
from pathlib import Path

import pytest

from megatron_reason.errors import ConfigError
from megatron_reason.registry import Registry, suggest


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[str]:
    """A registry over a package with a plug-in, and a private module that must not be imported."""
    package = tmp_path / "plugin_room"
    package.mkdir()
    (package / "__init__.py").write_text("REGISTRY = None\n")
    (package / "red.py").write_text(
        "import plugin_room\nplugin_room.REGISTRY.register('red')('the red one')\n"
    )
    (package / "_hidden.py").write_text("raise AssertionError('private modules stay unread')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "plugin_room", raising=False)
    monkeypatch.delitem(sys.modules, "plugin_room.red", raising=False)
    import plugin_room  # pyright: ignore[reportMissingImports]

    plugin_room.REGISTRY = Registry[str]("colour", "plugin_room")
    return plugin_room.REGISTRY


def test_a_room_is_discovered_without_a_list(room: Registry[str]) -> None:
    assert room.names() == ["red"]
    assert room.get("red") == "the red one"
    assert dict(room) == {"red": "the red one"}


def test_a_wrong_name_is_answered_with_the_nearest(room: Registry[str]) -> None:
    with pytest.raises(ConfigError, match=r"no colour called 'rde'.\n.*Did you mean 'red'"):
        room.get("rde")


def test_a_name_is_given_once(room: Registry[str]) -> None:
    room.register("blue")("one")
    with pytest.raises(ConfigError, match="registered twice"):
        room.register("blue")("two")


def test_suggestions_list_everything_when_nothing_is_near() -> None:
    assert suggest("zzz", ["alpha", "beta"]) == "Valid names: alpha, beta."
