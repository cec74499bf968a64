"""House rules that no linter knows: sizes, fences around words, and a test for every module.

    .venv/bin/python tools/check_rules.py [ROOT]

Writes one line per violation, `file:line  rule  what  way out`, and exits with 1 if there is any.
A rule is a generator under `@rule`; its first docstring line says what it demands. Not here: what
ruff, import-linter and basedpyright check (see pyproject.toml).
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path, PurePosixPath

from code_metrics import (
    Module,
    functions,
    is_print,
    num_code_lines,
    read_module,
)

PACKAGE = "megatron_reason"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
NAMELESS_ROOMS = frozenset({"common", "core", "helpers", "misc", "util", "utils"})
UNTRACKED = frozenset({".git", ".venv", "__pycache__", "build", "dist", "models", "runs"})

# Where a fenced text may stand, as globs of paths inside the package, and what to do elsewhere.
FENCES: dict[str, tuple[re.Pattern[str], tuple[str, ...], str]] = {
    "cuda-fence": (
        re.compile(r"torch\.cuda"),
        ("platform.py", "ops/kernels/*"),
        "ask megatron_reason.platform",
    ),
    "environment-fence": (
        re.compile(r"\bos\.(environ|getenv|putenv)\b|from os import .*\b(environ|getenv)\b"),
        (
            "engine/startup.py",
            "generation/child.py",
            "generation/vllm_*.py",
            "launch/*",
            "platform.py",
            "training/worker.py",
        ),
        "make it a config field; variables are the launcher's",
    ),
    "clock-fence": (
        re.compile(r"\btime\.time\(|\bst_[acm]time|\bdatetime\.now\b"),
        (
            "cli/watch.py",
            "launch/node.py",
            "pipeline/execute.py",
            "pipeline/manifest.py",
            "tracking/*",
        ),
        "nodes' clocks differ: take time.monotonic(), or decide by what the other side answers",
    ),
    "parallel-state-fence": (
        re.compile(r"\bparallel_state\.(?!destroy_model_parallel\b)"),
        ("engine/topology.py",),
        "take a Topology as an argument",
    ),
    "logprob-fence": (
        re.compile(r"\b(log_softmax|logsumexp|cross_entropy|CrossEntropyLoss)\b"),
        (
            "generation/hf_engine.py",  # a sampler, whose own distributions they are
            "ops/*",
            "pipeline/parity.py",  # the other side of the comparison
        ),
        "take ops.token_stats, which all methods, passes and scores share",
    ),
    "logprob-spelling": (
        re.compile(r"(?<![A-Za-z])log_probs?(?![A-Za-z])"),
        (),
        "spell it logprob, old_logprob, rollout_logprob or ref_logprob",
    ),
    "unfinished": (
        re.compile(r"\b(TO" r"DO|FIX" r"ME)\b"),
        (),
        "do it, or open an issue and delete the comment",
    ),
}
ABSOLUTE_PATH = re.compile(r"(?<![\w./$}{~*-])/(?:home|root|work)(?![\w-])")
REGISTRY_HOST = re.compile(r"\b(pypi\.org|pythonhosted\.org|download\.pytorch\.org)\b")

# What a method may not import: it is a pure function of statistics and batch.
IMPURE = ("datetime", "os", "pathlib", "random", "subprocess", "time", "torch.distributed")

# Modules without a test file of their own, as globs inside the package, and the test that runs
# them. Every entry must match a file and name a test that exists.
TESTED_BY: dict[str, str] = {
    "cli/options.py": "cli/test_run.py",  # the options that verbs share
    "config/*.py": "config/test_load.py",  # fields and bounds, seen through loading
    "curation/base.py": "curation/test_curation_line.py",  # the Stage protocol
    "engine/checkpoint.py": "training/test_faults.py",  # saved and resumed by real workers
    "curation/datasets/*.py": "curation/datasets/test_base.py",  # one contract for all
    "engine/startup.py": "engine/test_invariance.py",
    "engine/topology.py": "engine/test_invariance.py",
    "evaluation/card.py": "evaluation/test_run.py",  # what an evaluation writes
    "evaluation/summary.py": "evaluation/test_run.py",  # what an evaluation writes
    "evaluation/benchmarks/*.py": "evaluation/test_base.py",  # tables of values
    "evaluation/suites/*.py": "evaluation/test_suite.py",  # tables of values
    "generation/base.py": "generation/test_open.py",  # the Engine protocol
    "generation/chat_templates/*.py": "generation/test_templates.py",  # tables of values
    "generation/hf_folder.py": "generation/test_vllm_engine.py",  # weights of another model
    "cli/serve.py": "generation/test_server_engine.py",  # the real command, asked by a trainer
    "generation/vllm_arguments.py": "generation/test_vllm_engine.py",  # taken by a real vLLM
    "generation/vllm_server.py": "generation/test_server_engine.py",  # a real server and its end
    "generation/vllm_process.py": "generation/test_vllm_engine.py",  # the engine's other half
    "launch/base.py": "launch/test_local.py",  # the Launcher protocol
    "models/families/*.py": "models/test_architecture.py",  # tables of values
    "pipeline/consistency.py": "pipeline/test_run_config.py",  # seen through RunConfig
    "report/analyses/*.py": "report/test_analysis.py",  # one contract for all, and each one's own
    "report/drawing.py": "report/test_figures.py",  # seen through figures
    "report/examples.py": "report/test_page.py",  # seen on the page
    "rewards/_lese.py": "rewards/test_lese.py",  # parts of a total
    "rewards/base.py": "rewards/test_pool.py",  # the Reward protocol
    "rewards/lese_binary.py": "rewards/test_lese.py",  # the same vectors
    "rollout/source.py": "training/test_online.py",  # batches of every method
    "schema/credit.py": "methods/test_lese.py",  # frozen records
    "schema/topology.py": "engine/test_invariance.py",  # a frozen record
    "training/exporting.py": "training/test_online.py",  # what the engine answers with
    "training/loop.py": "training/test_faults.py",  # saving and stopping, by real workers
    "training/monitor.py": "training/test_online.py",  # measured during live runs
    "training/stopping.py": "training/test_faults.py",  # signals to real workers
    "training/duties.py": "training/test_offline.py",  # what real workers do
    "training/worker.py": "training/test_offline.py",  # started by torchrun, killed with -9
    "training/jobs.py": "training/test_offline.py",  # frozen records
}


@dataclass(frozen=True)
class Violation:
    """A place that breaks a rule."""

    path: str
    line: int
    rule: str
    what: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}  {self.rule}  {self.what}  {self.way_out}"


@dataclass(frozen=True)
class Tree:
    """The files of a working tree.

    Args:
        root: folder that holds the package and its tests.
        tested_by: modules whose test stands in another file; see `TESTED_BY`.
    """

    root: Path
    tested_by: dict[str, str]

    @cached_property
    def paths(self) -> list[str]:
        """Files that git tracks or would track, relative to the root; all files without git."""
        if (self.root / ".git").exists():
            command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
            listed = subprocess.run(command, cwd=self.root, check=True, capture_output=True)
            names = listed.stdout.decode().split("\0")
        else:
            found = (path.relative_to(self.root) for path in self.root.rglob("*"))
            names = [path.as_posix() for path in found if UNTRACKED.isdisjoint(path.parts)]
        return sorted(name for name in set(names) if name and (self.root / name).is_file())

    @cached_property
    def modules(self) -> dict[str, Module]:
        """Modules of the package by their path inside it."""
        return {
            path.removeprefix(f"{PACKAGE}/"): read_module(self.root / path)
            for path in self.paths
            if path.startswith(f"{PACKAGE}/") and path.endswith(".py")
        }

    def has(self, path: str) -> bool:
        """Whether `path`, relative to the root, is a file."""
        return (self.root / path).is_file()


Found = Iterator[tuple[str, int, str, str]]
"""Path from the root, line, what is wrong, way out."""

RULES: dict[str, Callable[[Tree], Found]] = {}


def rule(name: str) -> Callable[[Callable[[Tree], Found]], Callable[[Tree], Found]]:
    """Enter a check under `name`."""

    def enter(check: Callable[[Tree], Found]) -> Callable[[Tree], Found]:
        RULES[name] = check
        return check

    return enter


@rule("file-length")
def file_length(tree: Tree) -> Found:
    """A file of the package has at most MAX_FILE_LINES code lines."""
    for path, module in tree.modules.items():
        if len(module.code_lines) > MAX_FILE_LINES:
            what = f"{len(module.code_lines)} code lines, at most {MAX_FILE_LINES}"
            yield f"{PACKAGE}/{path}", 1, what, "give a part of it a file of its own"


@rule("function-length")
def function_length(tree: Tree) -> Found:
    """A function of the package has at most MAX_FUNCTION_LINES code lines."""
    for path, module in tree.modules.items():
        for function in functions(module.tree):
            length = num_code_lines(function, module.code_lines)
            if length > MAX_FUNCTION_LINES:
                what = f"{function.name} has {length} code lines, at most {MAX_FUNCTION_LINES}"
                yield f"{PACKAGE}/{path}", function.lineno, what, "split it by level of story"


def fence(name: str) -> Callable[[Tree], Found]:
    """Check that a fenced text stands only where `FENCES` allows it."""
    pattern, allowed, way_out = FENCES[name]

    def check(tree: Tree) -> Found:
        for path, module in tree.modules.items():
            if any(fnmatch(path, glob) for glob in allowed):
                continue
            for line, text in enumerate(module.text.splitlines(), start=1):
                if found := pattern.search(text):
                    yield f"{PACKAGE}/{path}", line, f"'{found[0]}' is not for this file", way_out

    return check


RULES.update((name, fence(name)) for name in FENCES)


@rule("print")
def no_print(tree: Tree) -> Found:
    """Output goes through the logger."""
    for path, module in tree.modules.items():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and is_print(node):
                yield f"{PACKAGE}/{path}", node.lineno, "print(...)", "use megatron_reason.logs"


@rule("dumb-assert")
def no_dumb_assert(tree: Tree) -> Found:
    """An assertion says what was expected."""
    for path, module in tree.modules.items():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Assert) and node.msg is None:
                what = f"assert {ast.unparse(node.test)} without a message"
                yield f"{PACKAGE}/{path}", node.lineno, what, "add one, or raise a ReasonError"


@rule("nameless-room")
def no_nameless_room(tree: Tree) -> Found:
    """A room or module is named after what it holds."""
    for path in tree.modules:
        for part in PurePosixPath(path).with_suffix("").parts:
            if part.strip("_") in NAMELESS_ROOMS:
                what = f"'{part}' says nothing about what is in it"
                yield f"{PACKAGE}/{path}", 1, what, "move each thing to the room it belongs to"


@rule("pure-methods")
def pure_methods(tree: Tree) -> Found:
    """A method imports no clock, file, randomness or process group."""
    for path, module in tree.modules.items():
        if not path.startswith("methods/"):
            continue
        for line, name in _imports(module.tree):
            if any(name == impure or name.startswith(f"{impure}.") for impure in IMPURE):
                what = f"a method may not import {name}"
                yield f"{PACKAGE}/{path}", line, what, "let the engine hand it over"


@rule("loose-config")
def no_loose_config(tree: Tree) -> Found:
    """A config section names its fields."""
    for path, module in tree.modules.items():
        if not path.startswith("config/"):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.AnnAssign) and "dict[str, Any]" in ast.unparse(node.annotation):
                what = f"'{ast.unparse(node.target)}' is a dict[str, Any]"
                yield f"{PACKAGE}/{path}", node.lineno, what, "make it a section with fields"


@rule("kernel-quartet")
def kernel_quartet(tree: Tree) -> Found:
    """A kernel has a definition, a test and a benchmark."""
    for path in tree.modules:
        kernel = PurePosixPath(path)
        if kernel.parent.as_posix() != "ops/kernels" or kernel.stem.startswith("_"):
            continue
        for other in (
            f"{PACKAGE}/ops/{kernel.name}",
            f"tests/ops/test_{kernel.name}",
            f"tools/bench/{kernel.name}",
        ):
            if not tree.has(other):
                yield f"{PACKAGE}/{path}", 1, f"there is no {other}", "write it"


@rule("mirrored-test")
def mirrored_test(tree: Tree) -> Found:
    """A module has a test of its name; an underscore module is tested through its siblings."""
    for path in tree.modules:
        module = PurePosixPath(path)
        if module.stem.startswith("_") or module.parent.as_posix() == "ops/kernels":
            continue
        covering = [test for glob, test in tree.tested_by.items() if fnmatch(path, glob)]
        expected = f"tests/{module.with_name(f'test_{module.name}')}"
        if not covering and not tree.has(expected):
            yield f"{PACKAGE}/{path}", 1, f"there is no {expected}", "write it"
    for glob, test in tree.tested_by.items():
        if not any(fnmatch(path, glob) for path in tree.modules):
            yield "tools/check_rules.py", 1, f"TESTED_BY: {glob} is gone", "delete the entry"
        if not tree.has(f"tests/{test}"):
            yield "tools/check_rules.py", 1, f"TESTED_BY: there is no tests/{test}", "write it"


@rule("absolute-path")
def no_absolute_path(tree: Tree) -> Found:
    """No tracked file names a folder of one machine."""
    yield from _in_any_file(tree, ABSOLUTE_PATH, "make it relative, or a setting")


@rule("registry-host")
def no_registry_host(tree: Tree) -> Found:
    """Packages come from whatever index pip is configured for."""
    yield from _in_any_file(tree, REGISTRY_HOST, "leave the index to pip's configuration")


def _in_any_file(tree: Tree, pattern: re.Pattern[str], way_out: str) -> Found:
    for path in tree.paths:
        for line, text in enumerate(_lines(tree.root / path), start=1):
            if found := pattern.search(text):
                yield path, line, f"'{found[0]}' names one machine", way_out


def _lines(path: Path) -> list[str]:
    content = path.read_bytes()
    return [] if b"\0" in content else content.decode(errors="replace").splitlines()


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that `tree` imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def check(root: Path, tested_by: dict[str, str]) -> list[Violation]:
    """All violations in the tree at `root`, by file and line."""
    tree = Tree(root, tested_by)
    found = [
        Violation(path, line, name, what, way_out)
        for name, demand in RULES.items()
        for path, line, what, way_out in demand(tree)
    ]
    return sorted(found, key=lambda violation: (violation.path, violation.line, violation.rule))


def main() -> None:
    """Check the tree named on the command line, or this one."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    violations = check(root, TESTED_BY)
    sys.stdout.writelines(f"{violation}\n" for violation in violations)
    if violations:
        sys.exit(1)
    sys.stdout.write(f"{len(RULES)} house rules kept\n")


if __name__ == "__main__":
    main()
