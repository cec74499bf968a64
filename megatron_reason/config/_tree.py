"""A configuration before it is validated: plain values, each with the place it came from.

Not here: YAML (`load.py`) and validation (`_explain.py`).
"""

from dataclasses import dataclass
from typing import TypeAlias

from megatron_reason.errors import ConfigError
from megatron_reason.registry import suggest

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
"""What YAML can say."""


@dataclass
class Node:
    """A value, a list or a section, and where it stands."""

    value: "bool | int | float | str | list[Node] | dict[str, Node] | None"
    place: str
    """`file:line`, or the override that set it."""

    def plain(self) -> Value:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def merged(self, above: "Node") -> "Node":
        """This value with `above` laid over it: sections merge by key, all else is replaced.

        A section laid over a list changes the items of those names, and appends those of new names.

        Raises:
            ConfigError: what should become a new item is no section.
        """
        if not isinstance(above.value, dict):
            return above
        if isinstance(self.value, list):
            return Node(self._items_merged(self.value, above.value), above.place)
        if not isinstance(self.value, dict):
            return above
        section = dict(self.value)
        for key, node in above.value.items():
            section[key] = section[key].merged(node) if key in section else node
        return Node(section, above.place)

    @staticmethod
    def _items_merged(items: "list[Node]", above: "dict[str, Node]") -> "list[Node]":
        merged = list(items)
        places = {_name(item): index for index, item in enumerate(items)}
        for name, node in above.items():
            if name in places:
                merged[places[name]] = merged[places[name]].merged(node)
            elif isinstance(node.value, dict):
                merged.append(Node({"name": Node(name, node.place)} | node.value, node.place))
            else:
                raise ConfigError(
                    f"{node.place}  {name}",
                    f"no item of the list below is called '{name}', and {node.plain()!r} is none.",
                    suggest(name, [known for known in places if known]),
                )
        return merged

    def placed(self, place: str) -> "Node":
        """The same value, said to come from `place` as a whole."""
        if isinstance(self.value, dict):
            return Node({key: node.placed(place) for key, node in self.value.items()}, place)
        if isinstance(self.value, list):
            return Node([node.placed(place) for node in self.value], place)
        return Node(self.value, place)

    def child(self, key: str, place: str, dotted: str) -> "Node":
        """The part of this node that `key` means: a key, an index, or the `name` of an item.

        Args:
            key: which part.
            place: who asks, for the message.
            dotted: what this node is called, for the message.

        Raises:
            ConfigError: there is no such part.
        """
        if isinstance(self.value, dict) and key in self.value:
            return self.value[key]
        if isinstance(self.value, list):
            if key.isdecimal() and int(key) < len(self.value):
                return self.value[int(key)]
            named = {_name(item): item for item in self.value}
            if key in named:
                return named[key]
            raise ConfigError(
                place,
                f"'{dotted}' has {len(self.value)} items, none of them is '{key}'.",
                suggest(
                    key, [*(name for name in named if name), *map(str, range(len(self.value)))]
                ),
            )
        raise ConfigError(
            place,
            f"'{dotted}' is {self.plain()!r}, not a section, so it has no key '{key}'.",
            f"Set '{dotted}' as a whole.",
        )


def _name(item: Node) -> str:
    if not isinstance(item.value, dict) or "name" not in item.value:
        return ""
    return str(item.value["name"].value)
