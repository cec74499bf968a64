"""Validation errors -> one ConfigError that names file, line, key, value and the nearest name.

Also the two things sections need to take part: `PickedBy`, for fields whose class is chosen by a
name in the value, and `refuse`, for checks that concern several keys. Not here: reading YAML.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import (
    CoreSchema,
    ErrorDetails,
    InitErrorDetails,
    PydanticCustomError,
    core_schema,
)

from megatron_reason.config._tree import Node
from megatron_reason.config.base import Strict
from megatron_reason.errors import ConfigError, ReasonError
from megatron_reason.registry import suggest

KeyPath = tuple[str | int, ...]
_LONGEST_VALUE = 80


@dataclass(frozen=True)
class PickedBy:
    """Annotation of a field that holds a plug-in's configuration.

    `Annotated[SerializeAsAny[MethodConfig], PickedBy("name", class_of)]` validates a mapping with
    the class that `class_of` gives for its entry `name`.
    """

    key: str
    """Entry of the mapping that names the plug-in."""
    class_of: Callable[[str], type[BaseModel]]
    """Configuration class of a plug-in; raises ConfigError for an unknown name."""

    def __get_pydantic_core_schema__(
        self,
        source: type,
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        """Put the choice of the class before the field's own validation."""
        return core_schema.no_info_before_validator_function(self._pick, handler(source))

    def section(self, raw: object) -> type[BaseModel] | None:
        """Class for the raw value, or None if it names none."""
        name = raw.get(self.key) if isinstance(raw, Mapping) else None
        try:
            return self.class_of(name) if isinstance(name, str) else None
        except ConfigError:
            return None

    def _pick(self, raw: object) -> object:
        if not isinstance(raw, Mapping):
            return raw
        name = raw.get(self.key)
        if not isinstance(name, str):
            refuse(
                [((self.key,), f"the name of a plug-in is text, not {name!r}.",
                  f"Write for example: {self.key}: my_plug_in")]
            )  # fmt: skip
        try:
            chosen = self.class_of(name)
        except ConfigError as error:
            refuse([((self.key,), error.what, error.way_out)])
        return chosen.model_validate(raw)


def refuse(objections: Sequence[tuple[KeyPath, str, str]]) -> NoReturn:
    """Refuse a section from inside a validator, for reasons that concern particular keys.

    Args:
        objections: (path of the key below this section, what is wrong, way out) each.

    Raises:
        ValidationError: always; `explain` turns it into a ConfigError.
    """
    raise ValidationError.from_exception_data(
        "configuration",
        [
            InitErrorDetails(
                type=PydanticCustomError("objection", "{what}", {"what": what, "way_out": way_out}),
                loc=path,
                input=None,
            )
            for path, what, way_out in objections
        ],
    )


@dataclass(frozen=True)
class _Problem:
    place: str
    dotted: str
    what: str
    way_out: str


def explain(error: ValidationError, tree: Node, root: type[BaseModel]) -> ConfigError:
    """One error for everything that is wrong with `tree`, in the order of the file."""
    written = [item for item in error.errors(include_url=False) if _is_written(item, tree)]
    found = dict.fromkeys(_problem(details, tree, root) for details in written)
    problems = sorted(found, key=lambda problem: _order(problem.place))
    if len(problems) == 1:
        only = problems[0]
        return ConfigError(f"{only.place}  {only.dotted}".rstrip(), only.what, only.way_out)
    blocks = [f"{p.place}  {p.dotted}\n    {p.what}\n    {p.way_out}" for p in problems]
    return ConfigError(
        f"{tree.place.split(':')[0]}  {len(problems)} problems",
        "\n  ".join(blocks).strip(),
        "Mend them all and try again.",
    )


def _is_written(details: ErrorDetails, tree: Node) -> bool:
    """Whether an unknown key stands in the file itself, not in a value that a section filled in."""
    unknown = details["type"] == "extra_forbidden"
    return not unknown or _locate(details, tree)[0][-1:] == details["loc"][-1:]


def _order(place: str) -> tuple[str, int]:
    file, _, line = place.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (place, 0)


def _problem(details: ErrorDetails, tree: Node, root: type[BaseModel]) -> _Problem:
    path, place = _locate(details, tree)
    what, way_out = _words(details, path, tree, root)
    return _Problem(place, ".".join(map(str, path)), what, way_out)


def _locate(details: ErrorDetails, tree: Node) -> tuple[KeyPath, str]:
    """Path in the file without pydantic's tags of unions, and the place nearest to it."""
    path: list[str | int] = []
    at, place = tree, tree.place
    for depth, key in enumerate(details["loc"]):
        inside = _inside(at, key)
        if inside is not None:
            at, place = inside, inside.place
        elif details["type"] not in ("missing", "objection") or depth + 1 < len(details["loc"]):
            continue
        path.append(key)
    return tuple(path), place


def _inside(node: Node, key: str | int) -> Node | None:
    if isinstance(node.value, dict):
        return node.value.get(str(key))
    if isinstance(node.value, list) and isinstance(key, int) and key < len(node.value):
        return node.value[key]
    return None


def _words(
    details: ErrorDetails, path: KeyPath, tree: Node, root: type[BaseModel]
) -> tuple[str, str]:
    """What is wrong, and the way out."""
    context = details.get("ctx", {})
    value = _shown(details["input"])
    raw: object = tree.plain()
    section = _section_at(path[:-1], raw, root)
    fields = section.model_fields if section else {}
    key = str(path[-1]) if path else ""
    field = fields.get(key)
    match details["type"]:
        case "objection":
            return str(context["what"]), str(context["way_out"])
        case "extra_forbidden" if section and issubclass(section, Strict) and key in section.ABSENT:
            return section.ABSENT[key]
        case "extra_forbidden":
            return f"there is no key '{key}' here; its value is {value}.", suggest(key, [*fields])
        case "missing":
            return f"the key '{key}' is missing.", f"Add it. {_documented(key, field)}"
        case "literal_error":
            valid = re.findall(r"'([^']*)'", str(context["expected"]))
            return f"{value} is not a value of '{key}'.", suggest(str(details["input"]), valid)
        case "union_tag_invalid":
            valid = re.findall(r"'([^']*)'", str(context["expected_tags"]))
            tag = str(context["tag"])
            return f"there is no '{tag}' here.", suggest(tag, valid)
        case "value_error":
            error = context["error"]
            if isinstance(error, ReasonError):
                return error.what, error.way_out
            return f"{error}.", "Change the keys named."
        case _:
            return f"{details['msg']}; its value is {value}.", _documented(key, field)


def _documented(key: str, field: FieldInfo | None) -> str:
    if field is None or not field.description:
        return "See `mreason show` for what is expected."
    return f"{key}: {field.description}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _section_at(path: KeyPath, raw: object, root: type[BaseModel]) -> type[BaseModel] | None:
    """Class of the section at `path`; None if that is no section."""
    annotation: Any = root
    for key in path:
        section = _section(annotation, raw)
        if section is not None:
            field = section.model_fields.get(str(key))
            annotation = _annotated(field) if field else None
        else:
            annotation = _item(annotation)
        raw = _part(raw, key)
    return _section(annotation, raw)


def _part(raw: object, key: str | int) -> object:
    if isinstance(raw, Mapping):
        return raw.get(key)
    if isinstance(raw, list) and isinstance(key, int) and key < len(raw):
        return raw[key]
    return None


def _annotated(field: FieldInfo) -> Any:  # noqa: ANN401 - a type
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _section(annotation: Any, raw: object) -> type[BaseModel] | None:  # noqa: ANN401 - a type
    """Class that `raw` is validated with where `annotation` stands; None for anything else."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        picks = [item for item in metadata if isinstance(item, PickedBy)]
        return picks[0].section(raw) if picks else _section(inner, raw)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (list, tuple, dict) or not isinstance(raw, Mapping):
        return None
    members = [member for arg in get_args(annotation) if (member := _section(arg, raw))]
    tagged = [member for member in members if _is_tagged(member, raw)]
    return (tagged or members or [None])[0]


def _is_tagged(section: type[BaseModel], raw: Mapping[str, object]) -> bool:
    """Whether one of the section's fields can only be what `raw` says."""
    return any(
        get_origin(field.annotation) is Literal and raw.get(name) in get_args(field.annotation)
        for name, field in section.model_fields.items()
    )


def _item(annotation: Any) -> Any:  # noqa: ANN401 - a type
    """Annotation of the items of a list, tuple or mapping."""
    if get_origin(annotation) is Annotated:
        return _item(get_args(annotation)[0])
    arguments = [arg for arg in get_args(annotation) if arg not in (Ellipsis, type(None))]
    if not arguments:
        return None
    is_container = get_origin(annotation) in (list, tuple, dict)
    return arguments[-1] if is_container else _item(arguments[0])
