"""A YAML file, those it extends and `--set` overrides -> one validated configuration.

Every value remembers the file and line it came from, so that a refusal can name them. `extends:`
merges files from left to right, the file itself last: sections merge key by key, lists and values
replace each other, and a section laid over a list changes or adds the items it names. Not here:
what keys exist (the sections), and the wording of refusals (`_explain.py`).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, cast

import yaml
from pydantic import ValidationError

from megatron_reason.config._explain import PickedBy, explain, refuse
from megatron_reason.config._tree import Node
from megatron_reason.config.base import Strict
from megatron_reason.errors import ConfigError

__all__ = ["PickedBy", "load_config", "refuse"]

R = TypeVar("R", bound=Strict)
EXTENDS = "extends"


def load_config(path: Path | None, overrides: Sequence[str], root: type[R]) -> R:
    """Read, merge, override and validate a configuration.

    Args:
        path: YAML file; None begins with an empty one.
        overrides: texts `a.b=c`, applied in order; c is read as YAML, an item of a list is meant by
            its index or by its `name`.
        root: section the file as a whole must be.

    Raises:
        ConfigError: no such file, no valid YAML, or keys and values that cannot be used; the
            message names file, line and key of each, and the nearest valid name.
    """
    tree = Node({}, "command line") if path is None else _read(path, ())
    for override in overrides:
        _apply(tree, override)
    try:
        return root.model_validate(tree.plain())
    except ValidationError as error:
        raise explain(error, tree, root) from error


class _Loader(yaml.SafeLoader):
    """YAML without dates, and with 1e-4 as a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _read(path: Path, readers: tuple[Path, ...]) -> Node:
    """Tree of the file `path` with all it extends; `readers` are the files that extend it."""
    resolved = path.resolve()
    if resolved in readers:
        chain = " -> ".join(str(reader) for reader in (*readers, resolved))
        raise ConfigError(
            f"{readers[-1]}  {EXTENDS}", f"files extend each other: {chain}.", "Break the circle."
        )
    tree = _parse(path)
    assert isinstance(tree.value, dict), "_parse answers with a section"
    extends = tree.value.pop(EXTENDS, Node([], str(path)))
    names = extends.plain()
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{extends.place}  {EXTENDS}",
            f"expected a file name or a list of them, not {names!r}.",
            "Write for example: extends: base.yaml",
        )
    merged = Node({}, tree.place)
    for name in names:
        merged = merged.merged(_read(path.parent / str(name), (*readers, resolved)))
    return merged.merged(tree)


def _parse(path: Path) -> Node:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            str(path), f"this file cannot be read: {reason}.", "Give the path of a YAML file."
        ) from error
    tree = _from_text(text, str(path))
    if tree.value is None:
        return Node({}, tree.place)
    if not isinstance(tree.value, dict):
        raise ConfigError(
            tree.place,
            f"a configuration is a mapping of sections, not {tree.plain()!r}.",
            "Write for example: run: {name: my_run}",
        )
    return tree


def _from_text(text: str, file: str) -> Node:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        return Node(None, file) if root is None else _node(loader, root, file)
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
        raise ConfigError(
            f"{file}:{mark.line + 1}" if mark else file,
            f"this is no YAML: {problem}.",
            "Look at quotes, brackets and indentation there, and in the line before.",
        ) from error
    except RecursionError as error:
        raise ConfigError(
            file, "an alias (*name) contains itself.", "Write the value out instead."
        ) from error
    finally:
        loader.dispose()


def _node(loader: _Loader, node: yaml.Node, file: str) -> Node:
    place = f"{file}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return Node([_node(loader, item, file) for item in node.value], place)
    if isinstance(node, yaml.MappingNode):
        section: dict[str, Node] = {}
        for key_node, value_node in node.value:
            key = _key(loader, key_node, file)
            key_place = f"{file}:{key_node.start_mark.line + 1}"
            if key in section:
                raise ConfigError(
                    f"{key_place}  {key}",
                    f"the key '{key}' stands twice in one section; first at {section[key].place}.",
                    "Keep one of them.",
                )
            section[key] = Node(_node(loader, value_node, file).value, key_place)
        return Node(section, place)
    assert isinstance(node, yaml.ScalarNode), "YAML has three kinds of nodes"
    return Node(_scalar(loader, node), place)


def _key(loader: _Loader, node: yaml.Node, file: str) -> str:
    key = _scalar(loader, node) if isinstance(node, yaml.ScalarNode) else None
    if not isinstance(key, str):
        shown = node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"
        raise ConfigError(
            f"{file}:{node.start_mark.line + 1}",
            f"keys are text; YAML reads {shown} as something else.",
            f"Put the key in quotes: '{shown}'.",
        )
    return key


def _scalar(loader: _Loader, node: yaml.ScalarNode) -> bool | int | float | str | None:
    return cast("bool | int | float | str | None", loader.construct_object(node))


def _apply(tree: Node, override: str) -> None:
    """Set one value of `tree` from a text `a.b=c`."""
    dotted, equals, text = override.partition("=")
    place = f"--set {dotted}"
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {override}",
            "an override is a dotted key, '=' and a value.",
            "Write for example: --set train.optim.lr=1e-5",
        )
    at = tree
    for depth, key in enumerate(keys[:-1]):
        if at.value is None:
            at.value = {}
        if isinstance(at.value, dict):
            at.value.setdefault(key, Node({}, place))
        at = at.child(key, place, ".".join(keys[:depth]))
    value = Node(_from_text(text, place).value, place).placed(place)
    if at.value is None:
        at.value = {}
    if isinstance(at.value, dict):
        at.value[keys[-1]] = value
    else:
        item = at.child(keys[-1], place, ".".join(keys[:-1]))
        item.value, item.place = value.value, place
