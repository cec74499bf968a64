"""Name -> plug-in, for every room a user may add a file to.

A room (a package such as `megatron_reason.methods`) is *discovered*: the first look-up imports each
of its modules whose name does not begin with `_`, and each module registers itself. Not here: any
list of names; adding a file to the room is all it takes.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from megatron_reason.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Plug-ins of one kind, filled by importing a room and read-only afterwards.

    Args:
        kind: what one entry is, in the singular, for error messages ("method").
        room: dotted name of the package whose modules register entries.
    """

    def __init__(self, kind: str, room: str) -> None:
        self.kind = kind
        self.room = room
        self._entries: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters its argument under `name`; a second entry of a name is refused."""

        def enter(entry: T) -> T:
            if name in self._entries:
                raise ConfigError(
                    f"{self.kind} '{name}'",
                    f"registered twice: {self._entries[name]!r} and {entry!r}.",
                    "Give one of the two another name.",
                )
            self._entries[name] = entry
            return entry

        return enter

    def get(self, name: str, where: str = "configuration") -> T:
        """Entry called `name`.

        Raises:
            ConfigError: no such entry; the message offers the nearest names.
        """
        if name not in self._entries:
            # Modules may be slow to import; one that was imported by its name is enough.
            self._discover()
        if name not in self._entries:
            raise ConfigError(
                where,
                f"there is no {self.kind} called '{name}'.",
                suggest(name, self._entries),
            )
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self._discover()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[tuple[str, T]]:
        """(name, entry) in order of name."""
        return iter([(name, self._entries[name]) for name in self.names()])

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self.room)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.room}.{module.name}")
        self._discovered = True


def suggest(wrong: str, valid: Iterator[str] | dict[str, T] | list[str]) -> str:
    """Sentence naming the entries of `valid` nearest to `wrong`, or all when nothing is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(wrong, names, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(repr(name) for name in near)}?"
    return f"Valid names: {', '.join(names)}."
