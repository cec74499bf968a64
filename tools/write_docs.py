"""Writes `docs/methods/`: a page per method, from its docstrings, settings and needs.

    .venv/bin/python tools/write_docs.py          # write the pages
    .venv/bin/python tools/write_docs.py --check  # say which are out of date; exit code 1 if any

A method's module docstring is its page: one line, then paragraphs that begin with a word of
`SECTIONS`. Not here: any fact about a method.
"""

import argparse
import inspect
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

    from megatron_reason.schema.method import Method

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "methods"
SECTIONS = ("Loss", "Source", "Settings", "Data", "Expect", "Deviations")
REQUIRED = ("Loss", "Source", "Data", "Expect", "Deviations")
_HEAD = re.compile(rf"^({'|'.join(SECTIONS)})[.:] ", re.MULTILINE)


def sections_of(docstring: str) -> tuple[str, dict[str, str]]:
    """First line, and text by section.

    Raises:
        ValueError: a required section is missing.
    """
    summary, _, body = inspect.cleandoc(docstring).partition("\n\n")
    parts = _HEAD.split(body)
    found = dict(zip(parts[1::2], (text.strip() for text in parts[2::2]), strict=True))
    if missing := [name for name in REQUIRED if name not in found]:
        raise ValueError(f"'{summary}' has no paragraph {', '.join(missing)}")
    return summary, found


def page_of(name: str, method: "type[Method[Any]]") -> str:
    """Markdown page of one method."""
    from megatron_reason.schema.method import create_method

    module = inspect.getmodule(method)
    summary, sections = sections_of((module and module.__doc__) or "")
    title, _, purpose = summary.partition(": ")
    lines = [f"# {title}", "", purpose or title, ""]
    for section in SECTIONS:
        if section in sections:
            lines += [f"**{section}.** {_escaped(sections[section])}", ""]
    needs = create_method(name).required()
    lines += [
        "## Needs", "", "With the default settings:", "",
        f"- sequences of role {_listed(needs.roles)}",
        f"- statistics: {_listed(needs.stats)}",
        f"- constants per token, known before the forward pass: {_listed(needs.frozen)}", "",
        "## Settings", "",
        f"`method: {{name: {name}, ...}}`; `mreason show method {name}` prints them, too.", "",
        "| setting | default | meaning |", "|---|---|---|",
    ]  # fmt: skip
    for field, info in method.config_class.model_fields.items():
        if field != "name":
            meaning = _escaped(info.description or "")
            lines.append(f"| `{field}` | {_cell(info.default)} | {meaning} |")
    lines += presets_of(name, method)
    lines += ["", f"Code: `megatron_reason/methods/{Path(inspect.getfile(method)).name}`.", ""]
    return "\n".join(lines)


def presets_of(name: str, method: "type[Method[Any]]") -> list[str]:
    """Section on the values that papers and released codes give."""
    columns = {preset.name: preset.given() for preset in method.presets}
    defaults = {
        field: info.default
        for field, info in method.config_class.model_fields.items()
        if any(field in given for given in columns.values())
    }
    if not columns:
        return []
    heads = [f"`{preset}`" for preset in columns]
    lines = [
        "", "## Presets", "",
        f"`method: {{name: {name}, preset: {next(iter(columns))}, ...}}` takes the values of one; "
        "keys given beside it win, and what a run records are the values. Bold: not the default. "
        "Empty: the source does not say, the default holds.", "",
        *(f"- `{preset.name}`: {_escaped(preset.source)}." for preset in method.presets), "",
        f"| setting | default | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|",
    ]  # fmt: skip
    for field, default in defaults.items():
        cells = [
            _cell(given[field], is_bold=given[field] != default) if field in given else ""
            for given in columns.values()
        ]
        lines.append(f"| `{field}` | {_cell(default)} | {' | '.join(cells)} |")
    return lines


def index_of(methods: "list[tuple[str, type[Method[Any]]]]") -> str:
    """Markdown page that lists all methods."""
    lines = [
        "# Methods", "",
        "Written by `tools/write_docs.py` from the code. Each method is one file; how to add one "
        "is in [add_a_method.md](../add_a_method.md), how they were checked in "
        "[invariance.md](../invariance.md).", "",
        "A page also lists the method's presets: the values of its settings that a paper or a "
        "released code gives, by name, each with its source. "
        "`method: {name: oxa, preset: released, suppress_weight: 3.0e-4}` takes a preset's values "
        "and one of your own, which wins; hashes, manifests and `mreason plan` hold the values. "
        "What surrounds a method (data, learning rate, schedule, batch limits) is in the files of "
        "[examples/presets](../../examples/presets), for those that learn from a fixed table: put "
        "`extends: examples/presets/oxa_7b.yaml` into a file of your own and write what differs "
        "below it.", "",
        "What released codes do to a micro-batch (a mean or a choice within it) depends on how "
        "sequences were packed. Here it is `chunk_mean_token_mean`, or `scope: chunk`: the same "
        "within chunks of a fixed number of neighbours in the order of the update, whatever the "
        "layout. What no such chunk imitates stands under Deviations.", "",
        "| name | what it is |", "|---|---|",
    ]  # fmt: skip
    for name, method in methods:
        module = inspect.getmodule(method)
        summary, _ = sections_of((module and module.__doc__) or "")
        lines.append(f"| [`{name}`]({name}.md) | {_escaped(summary)} |")
    return "\n".join([*lines, ""])


def pages() -> dict[Path, str]:
    """Every page, by path."""
    from megatron_reason.schema.method import METHODS

    methods = list(METHODS)
    written = {PAGES / f"{name}.md": page_of(name, method) for name, method in methods}
    return written | {PAGES / "README.md": index_of(methods)}


def _cell(value: object, *, is_bold: bool = False) -> str:
    text = json.dumps(value).strip('"')
    return f"**`{text}`**" if is_bold else f"`{text}`"


def _listed(values: "Collection[object]") -> str:
    return ", ".join(f"`{value}`" for value in sorted(map(str, values))) or "none"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def main() -> None:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    sys.path.insert(0, str(ROOT))
    wanted = pages()
    stale = [
        path
        for path, text in wanted.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    stale += [path for path in PAGES.glob("*.md") if path not in wanted]
    if is_check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run tools/write_docs.py")
        sys.exit(1 if stale else 0)
    PAGES.mkdir(parents=True, exist_ok=True)
    for path in stale:
        if path in wanted:
            path.write_text(wanted[path], encoding="utf-8")
        else:
            path.unlink()
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
