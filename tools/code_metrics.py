"""The size and shape of the code as one table: file and function lengths, cycles, docstrings.

    .venv/bin/python tools/code_metrics.py [PACKAGE] [--tests FOLDER] [--json]

A code line is neither blank, nor comment, nor docstring. `tools/check_rules.py` counts with the
functions of this file. Not here: limits; see `tools/check_rules.py`.
"""

import argparse
import ast
import io
import itertools
import json
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DUPLICATE_LINES = 12
LONG_FUNCTION_LINES = 80

Function = ast.FunctionDef | ast.AsyncFunctionDef
_LAYOUT = frozenset(
    {
        tokenize.COMMENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
        tokenize.INDENT,
        tokenize.NEWLINE,
        tokenize.NL,
    }
)


@dataclass(frozen=True)
class Module:
    """One Python file, read and parsed once."""

    path: Path
    text: str
    tree: ast.Module
    code_lines: frozenset[int]
    """Line numbers that are neither blank, nor comment, nor docstring."""


def read_module(path: Path) -> Module:
    """Read and parse `path`."""
    text = path.read_text()
    tree = ast.parse(text, str(path))
    return Module(path, text, tree, code_line_numbers(text, tree))


def code_line_numbers(text: str, tree: ast.Module) -> frozenset[int]:
    """Numbers (from 1) of the lines of `text` that are not blank, comment or docstring."""
    numbers: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT:
            numbers.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and _is_string(node.value):
            numbers.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return frozenset(numbers)


def functions(tree: ast.Module) -> Iterator[Function]:
    """Every function and method of `tree`, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def num_code_lines(function: Function, code_lines: frozenset[int]) -> int:
    """Code lines of `function`, its signature and decorators included."""
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    last = function.end_lineno or function.lineno
    return sum(first <= number <= last for number in code_lines)


def rooms_in_a_cycle(modules: list[Module], package: Path) -> set[str]:
    """Top-level rooms of `package` that import each other, by module-level imports only."""
    imports: dict[str, set[str]] = defaultdict(set)
    for module in modules:
        room = module.path.relative_to(package).parts[0].removesuffix(".py")
        imports[room] |= _rooms_imported(module.tree, package.name) - {room}
    imports.pop("__init__", None)
    return {room for room in imports if room in _reachable(room, imports)}


def num_duplicates(modules: list[Module]) -> int:
    """Pairs of places that share `DUPLICATE_LINES` or more successive code lines."""
    places: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    for module in modules:
        lines = module.text.splitlines()
        code = [lines[number - 1].strip() for number in sorted(module.code_lines)]
        for start in range(len(code) - DUPLICATE_LINES + 1):
            places[tuple(code[start : start + DUPLICATE_LINES])].append((module.path, start))
    # A longer run repeats in each of its windows, at one distance: count it once.
    runs = {
        (left[0], right[0], right[1] - left[1])
        for found in places.values()
        for left, right in itertools.combinations(found, 2)
    }
    return len(runs)


def measure(package: Path, tests: Path) -> dict[str, float | int | str]:
    """The row of the table for `package`, by column."""
    modules = [read_module(path) for path in sorted(package.rglob("*.py"))]
    files = sorted(len(module.code_lines) for module in modules)
    defined = [(module, function) for module in modules for function in functions(module.tree)]
    lengths = sorted(num_code_lines(function, module.code_lines) for module, function in defined)
    public = [node for module in modules for node in _public(module.tree)]
    test_lines = sum(len(read_module(path).code_lines) for path in tests.rglob("*.py"))
    nodes = [node for module in modules for node in ast.walk(module.tree)]
    return {
        "code lines": sum(files),
        "files": len(files),
        "median / p90 file": f"{statistics.median(files):.0f} / {_p90(files)}",
        "longest file": files[-1],
        "p90 / longest function": f"{_p90(lengths)} / {max(lengths, default=0)}",
        f"functions > {LONG_FUNCTION_LINES} lines": sum(n > LONG_FUNCTION_LINES for n in lengths),
        "public docstrings": _percent(
            sum(ast.get_docstring(n) is not None for n in public), len(public)
        ),
        "return types": _percent(sum(f.returns is not None for _, f in defined), len(defined)),
        "rooms in a cycle": len(rooms_in_a_cycle(modules, package)),
        "test : code": round(test_lines / sum(files), 2),
        "prints": sum(is_print(node) for node in nodes),
        "broad excepts": sum(_is_broad_except(node) for node in nodes),
        "config keys": sum(_num_config_keys(module) for module in modules),
        f"duplicates of {DUPLICATE_LINES}+ lines": num_duplicates(modules),
    }


def is_print(node: ast.AST) -> bool:
    """Whether `node` calls the built-in print."""
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    )


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _rooms_imported(tree: ast.Module, package: str) -> set[str]:
    dotted: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            dotted |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            dotted |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in dotted if name.startswith(f"{package}.")}


def _reachable(start: str, imports: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    pending = [*imports.get(start, ())]
    while pending:
        room = pending.pop()
        if room not in found:
            found.add(room)
            pending += imports.get(room, ())
    return found


def _public(tree: ast.Module) -> list[Function | ast.ClassDef]:
    """Public functions and classes of a module, and the public methods of the latter."""
    found: list[Function | ast.ClassDef] = []
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            found.append(node)
            if isinstance(node, ast.ClassDef):
                found += [inner for inner in node.body if isinstance(inner, Function)]
    return [node for node in found if not node.name.startswith("_")]


def _is_broad_except(node: ast.AST) -> bool:
    if not isinstance(node, ast.ExceptHandler):
        return False
    broad = ("BaseException", "Exception")
    return node.type is None or (isinstance(node.type, ast.Name) and node.type.id in broad)


def _num_config_keys(module: Module) -> int:
    """Fields of the classes whose name ends in Config: what a YAML may say."""
    classes = [node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    return sum(
        isinstance(statement, ast.AnnAssign)
        for node in classes
        if node.name.endswith("Config")
        for statement in node.body
    )


def _p90(ordered: list[int]) -> int:
    return ordered[len(ordered) * 9 // 10] if ordered else 0


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"


def main() -> None:
    """Write the table of the package named on the command line."""
    parser = argparse.ArgumentParser(description="Size and shape of a package.")
    parser.add_argument("package", nargs="?", type=Path, default=ROOT / "megatron_reason")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    arguments = parser.parse_args()
    row = measure(arguments.package.resolve(), arguments.tests)
    if arguments.json:
        sys.stdout.write(json.dumps(row, indent=2) + "\n")
        return
    width = max(len(name) for name in row)
    sys.stdout.writelines(f"{name:<{width}}  {value}\n" for name, value in row.items())


if __name__ == "__main__":
    main()
