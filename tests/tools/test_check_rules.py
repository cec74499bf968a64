"""Every house rule finds a violation of itself that is planted in an otherwise clean tree."""

import subprocess
import sys
from pathlib import Path

import check_rules
import pytest

ROOT = Path(__file__).resolve().parents[2]
CLEAN = '"""A module."""\n\n\ndef value() -> int:\n    """One."""\n    return 1\n'

# Put together from pieces, because the rules read this file too.
HOME_PATH = "/ho" + "me/someone/runs"
HOST = "pypi" + ".org"


def lines(count: int, indent: str = "") -> str:
    return "".join(f"{indent}x{number} = {number}\n" for number in range(count))


# rule: (path of the planted file, its text, the line that must be named)
PLANTED = {
    "file-length": ("megatron_reason/ops/value.py", lines(401), 1),
    "function-length": ("megatron_reason/ops/value.py", "\ndef long():\n" + lines(80, "    "), 2),
    "cuda-fence": ("megatron_reason/ops/value.py", "import torch\ntorch.cuda.synchronize()\n", 2),
    "environment-fence": ("megatron_reason/ops/value.py", "import os\nos.environ['HOME']\n", 2),
    "clock-fence": ("megatron_reason/ops/value.py", "import time\nnow = time.time()\n", 2),
    "parallel-state-fence": ("megatron_reason/ops/value.py", "parallel_state.get_x()\n", 1),
    "logprob-fence": (
        "megatron_reason/methods/value.py",
        "import torch\nlogprob_TV = torch.log_softmax(logits_TV, -1)\n",
        2,
    ),
    "logprob-spelling": ("megatron_reason/ops/value.py", "old_log_probs = 0\n", 1),
    "unfinished": ("megatron_reason/ops/value.py", "x = 1  # TO" + "DO: more\n", 1),
    "print": ("megatron_reason/ops/value.py", "\n\nprint('done')\n", 3),
    "dumb-assert": ("megatron_reason/ops/value.py", "x = 1\nassert x == 1\n", 2),
    "nameless-room": ("megatron_reason/utils/value.py", CLEAN, 1),
    "pure-methods": ("megatron_reason/methods/value.py", '"""M."""\nimport time\n', 2),
    "loose-config": (
        "megatron_reason/config/value.py",
        "from typing import Any\nextra: dict[str, Any] = {}\n",
        2,
    ),
    "kernel-quartet": ("megatron_reason/ops/kernels/fused.py", CLEAN, 1),
    "mirrored-test": ("megatron_reason/ops/untested.py", CLEAN, 1),
    "absolute-path": ("examples/run.yaml", f"name: x\ndir: {HOME_PATH}\n", 2),
    "registry-host": (
        "scripts/install.sh",
        f"pip install --index-url https://{HOST}/simple x\n",
        1,
    ),
}


def write(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that keeps every rule."""
    write(tmp_path, "megatron_reason/__init__.py", '"""A package."""\n')
    write(tmp_path, "megatron_reason/ops/value.py", CLEAN)
    for room in ("ops", "methods", "config", "utils"):
        write(tmp_path, f"tests/{room}/test_value.py", CLEAN)
    return tmp_path


def test_clean_tree_has_no_violation(tree: Path):
    assert check_rules.check(tree, {}) == []


def test_every_rule_is_planted():
    assert set(PLANTED) == set(check_rules.RULES)


@pytest.mark.parametrize("rule", sorted(check_rules.RULES))
def test_rule_finds_what_is_planted(tree: Path, rule: str):
    path, text, line = PLANTED[rule]
    write(tree, path, text)
    found = check_rules.check(tree, {})
    assert (rule, path, line) in {(one.rule, one.path, one.line) for one in found}
    # Nothing else is to be said about the planted file: each rule sees its own violation only.
    assert {one.rule for one in found} == {rule}
    assert all(one.what and one.way_out for one in found)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("megatron_reason/platform.py", "import torch\ntorch.cuda.synchronize()\n"),
        ("megatron_reason/launch/local.py", "import os\nos.environ['HOME']\n"),
        ("megatron_reason/engine/topology.py", "parallel_state.get_x()\n"),
        ("megatron_reason/ops/value.py", "logprob_TV = logits_TV.log_softmax(-1)\n"),
        ("megatron_reason/ops/value.py", "x = 'printed'  # blueprint\nold_logprob = 0\n"),
        ("megatron_reason/ops/value.py", '"""A long docstring."""\n' + "# note\n\n" * 500),
        ("megatron_reason/ops/value.py", "def f():\n" + lines(79, "    ")),
        ("megatron_reason/ops/value.py", "x = 1\nassert x == 1, 'one is one'\n"),
        ("examples/run.yaml", "dir: ~/experiments/runs\n"),
    ],
)
def test_what_is_allowed_is_not_found(tree: Path, path: str, text: str):
    write(tree, path, text)
    module = Path(path).relative_to("megatron_reason") if path.endswith(".py") else None
    if module:
        write(tree, f"tests/{module.with_name(f'test_{module.name}')}", CLEAN)
    assert check_rules.check(tree, {}) == []


def test_exemption_must_name_a_module_and_a_test_that_exist(tree: Path):
    write(tree, "megatron_reason/ops/untested.py", CLEAN)
    assert check_rules.check(tree, {"ops/untested.py": "ops/test_value.py"}) == []
    stale = check_rules.check(tree, {"ops/*.py": "ops/test_gone.py", "gone/*.py": "x.py"})
    assert {one.what.split(": ")[1] for one in stale} == {
        "there is no tests/ops/test_gone.py",
        "gone/*.py is gone",
        "there is no tests/x.py",
    }


def test_ignored_files_are_not_read(tree: Path):
    subprocess.run(["git", "init", "--quiet"], cwd=tree, check=True)
    write(tree, ".gitignore", "/runs/\n")
    write(tree, "runs/log.txt", HOME_PATH)
    assert check_rules.check(tree, {}) == []


def test_program_prints_the_place_and_fails(tree: Path):
    path, text, line = PLANTED["print"]
    write(tree, path, text)
    program = [sys.executable, str(ROOT / "tools" / "check_rules.py"), str(tree)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{path}:{line}  print  print(...)  use megatron_reason.logs" in done.stdout
