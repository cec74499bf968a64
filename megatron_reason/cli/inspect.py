"""Verbs that only look: list, show, doctor. Not here: anything that changes a file."""

import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_reason.cli.options import Json
from megatron_reason.errors import ConfigError
from megatron_reason.registry import Registry, suggest

if TYPE_CHECKING:
    from pydantic import BaseModel

    from megatron_reason.pipeline.doctor import Finding


def _methods() -> Registry[Any]:
    from megatron_reason.schema.method import METHODS

    return METHODS


def _models() -> Registry[Any]:
    from megatron_reason.models.architecture import ARCHITECTURES

    return ARCHITECTURES


def _rewards() -> Registry[Any]:
    from megatron_reason.rewards.base import REWARDS

    return REWARDS


def _stages() -> Registry[Any]:
    from megatron_reason.curation.base import STAGES

    return STAGES


def _benchmarks() -> Registry[Any]:
    from megatron_reason.evaluation.base import BENCHMARKS

    return BENCHMARKS


def _suites() -> Registry[Any]:
    from megatron_reason.evaluation.suite import SUITES

    return SUITES


def _analyses() -> Registry[Any]:
    from megatron_reason.report.analysis import ANALYSES

    return ANALYSES


def _templates() -> Registry[Any]:
    from megatron_reason.generation.templates import TEMPLATES

    return TEMPLATES


_HEADED = re.compile(r"[A-Z]\w*[.:] ")
"""Line of a docstring with which a part of it begins: "Loss. ..."."""
_REGISTRIES: dict[str, Callable[[], Registry[Any]]] = {
    "methods": _methods,
    "models": _models,
    "rewards": _rewards,
    "stages": _stages,
    "benchmarks": _benchmarks,
    "suites": _suites,
    "analyses": _analyses,
    "templates": _templates,
}


def list_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"{' | '.join(_REGISTRIES)}")],
    as_json: Json = False,
) -> None:
    """List the plug-ins of one kind.

    Example: mreason list methods
    """
    registry = _registry(kind)
    rows = [(name, _first_line(_explained(entry))) for name, entry in registry]
    if as_json:
        typer.echo(json.dumps(dict(rows), indent=2))
        return
    width = max((len(name) for name, _ in rows), default=0)
    for name, line in rows:
        typer.echo(f"{name:<{width}}  {line}".rstrip())
        for more in _in_short(name, registry.get(name, "mreason list")):
            typer.echo(f"{'':<{width}}    {more}")


def _in_short(name: str, entry: object) -> list[str]:
    """Formula, source and data needs of a method, from where it is written; nothing of others."""
    needs = _needs(name, entry)
    if not needs:
        return []
    home = inspect.getmodule(entry)
    lines = (inspect.getdoc(home) or "").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith(("Loss.", "Source:"))]
    ends = [i for i, line in enumerate(lines) if _HEADED.match(line) or not line]
    parts = [lines[i : min((end for end in ends if end > i), default=len(lines))] for i in starts]
    return [*itertools.chain(*parts), f"Needs: {', '.join(needs['roles'])}."]


def show(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND", help=" | ".join(kind.removesuffix("s") for kind in _REGISTRIES)
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `mreason list` prints it.")],
    as_json: Json = False,
) -> None:
    """Show one plug-in, its needs, its settings and its presets.

    Example: mreason show method oxa
    """
    entry = _registry(f"{kind.removesuffix('s')}s").get(name, "mreason show")
    description = _description(_explained(entry))
    needs = _needs(name, entry)
    fields = _fields(getattr(entry, "config_class", None))
    presets = _presets(entry)
    if as_json:
        shown = {"name": name, "description": description, "needs": needs, "settings": fields}
        typer.echo(json.dumps(shown | {"presets": presets}, indent=2))
        return
    typer.echo(description)
    for what, values in needs.items():
        typer.echo(f"\nneeds {what}: {', '.join(values) or 'nothing'}")
    if fields:
        typer.echo("\nsettings:")
    for field in fields:
        typer.echo(f"  {field['name']}: {field['type']} = {field['default']}")
        typer.echo(f"      {field['meaning']}")
    if presets:
        typer.echo("\npresets:")
    for preset in presets:
        values = ", ".join(f"{key}: {json.dumps(v)}" for key, v in preset["values"].items())
        typer.echo(f"  {preset['name']}: {preset['source']}\n      {values}")


def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Score fixed texts with transformers, Megatron and vLLM instead.",
        ),
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option("--self-test", help="Then train, answer and grade with a tiny random model."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show versions, devices, and what is missing; or who computes something else from a model.

    Each thing that is missing or does not work comes with the command that fixes it. Ends with exit
    code 1 if something that every run needs is missing, if the self-test fails (it takes a minute),
    or if the programs disagree about the model.

    Example: mreason doctor --self-test
    """
    from megatron_reason.pipeline.doctor import examine, examine_model

    found = examine() if model is None else examine_model(model)
    findings: list[Finding] = []
    for finding in itertools.chain(found, _tried(found) if self_test else ()):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{finding.verdict:<8} {finding.what:<24} {finding.found}")
            if finding.way_out:
                typer.echo(f"{'':<33} {finding.way_out}")
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    if any(finding.verdict in ("missing", "wrong") for finding in findings):
        raise typer.Exit(1)


def _tried(found: "Sequence[Finding]") -> "Iterator[Finding]":
    """The self-test, where nothing is missing that it needs."""
    if any(finding.verdict == "missing" for finding in found):
        return
    from megatron_reason.pipeline.self_test import installed_engines, self_test

    yield from self_test(installed_engines())


def _registry(kind: str) -> Registry[Any]:
    if kind not in _REGISTRIES:
        raise ConfigError(
            "mreason", f"there are no plug-ins of kind '{kind}'.", suggest(kind, [*_REGISTRIES])
        )
    return _REGISTRIES[kind]()


def _explained(entry: object) -> object:
    """What has the docstring: of a reward its grading function."""
    return getattr(entry, "grade", entry)


def _description(entry: object) -> str:
    """Docstring of the entry's module, where the source is named, and of the entry itself."""
    home = inspect.getmodule(entry if callable(entry) else type(entry))
    parts = [home.__doc__ if home and callable(entry) else None, _own_doc(entry)]
    return "\n\n".join(inspect.cleandoc(part) for part in parts if part)


def _own_doc(entry: object) -> str:
    if callable(entry):
        return inspect.getdoc(entry) or ""
    return "\n".join(f"{name}: {value}" for name, value in vars(entry).items())


def _first_line(entry: object) -> str:
    return (inspect.getdoc(entry) or "").split("\n")[0] if callable(entry) else ""


def _needs(name: str, entry: object) -> dict[str, list[str]]:
    """What a method needs with its default settings."""
    from megatron_reason.schema.method import Method, create_method

    if not (isinstance(entry, type) and issubclass(entry, Method)):
        return {}
    needs = create_method(name).required()
    return {
        "roles": sorted(str(role) for role in needs.roles),
        "statistics": sorted(str(stat) for stat in needs.stats),
        "constants per token": sorted(str(what) for what in needs.frozen),
    }


def _presets(entry: object) -> list[dict[str, Any]]:
    """Name, source and values of a method's presets."""
    from megatron_reason.schema.method import Method

    if not (isinstance(entry, type) and issubclass(entry, Method)):
        return []
    return [{"name": p.name, "source": p.source, "values": p.given()} for p in entry.presets]


def _fields(config_class: "type[BaseModel] | None") -> list[dict[str, str]]:
    """Name, type, default and meaning of every setting of a plug-in."""
    if config_class is None:
        return []
    return [
        {
            "name": name,
            "type": _type_name(field.annotation),
            "default": "(required)" if field.is_required() else repr(field.get_default()),
            "meaning": field.description or "",
        }
        for name, field in config_class.model_fields.items()
    ]


def _type_name(annotation: object) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return text.replace("typing.", "").replace("megatron_reason.", "")
