"""Layers, ruff, types and house rules fail on a violation planted in a copy of this repository.

Each checker runs as `scripts/check.sh` runs it, with the repository's own configuration.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and the configuration of all checks, in a folder of its own."""
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "megatron_reason", tmp_path / "megatron_reason", ignore=leave_out)
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=leave_out)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(folder: Path, *command: str) -> tuple[int, str]:
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def contract(output: str, name: str) -> str:
    """What lint-imports says of the contract called `name`: KEPT or BROKEN."""
    (line,) = [line for line in output.splitlines() if line.startswith(f"{name} ")]
    return line.removeprefix(name).split()[0]


@pytest.mark.parametrize(
    ("module", "line", "name"),
    [
        ("ops/planted.py", "from megatron_reason.engine import update", "rooms are layers"),
        ("engine/planted.py", "from megatron_reason.methods import oxa", "rooms are layers"),
        ("utils/__init__.py", "", "rooms are layers"),
        (
            "methods/planted.py",
            "import megatron.core",
            "Megatron stays in engine, models, platform",
        ),
        ("curation/planted.py", "import vllm", "vLLM stays in its adapters"),
        ("ops/planted.py", "import triton", "Triton stays in ops.kernels"),
        ("evaluation/planted.py", "import matplotlib", "matplotlib stays in report.drawing"),
        ("engine/planted.py", "import wandb", "wandb and TensorBoard stay in tracking"),
        ("launch/planted.py", "import nemo_run", "NeMo-Run stays in launch.nemo_run"),
        ("report/planted.py", "import torch", "no torch where a launcher or a report runs"),
        (
            "config/planted.py",
            "import torch.nn",
            "no torch where a launcher or a report runs",
        ),
    ],
)
def test_layer_violation_breaks_its_contract(copy: Path, module: str, line: str, name: str):
    planted = copy / "megatron_reason" / module
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(f'"""Planted."""\n{line}\n')
    code, output = run(copy, "lint-imports", "--no-cache")
    assert code == 1
    assert contract(output, name) == "BROKEN"


def test_clean_copy_keeps_every_contract(copy: Path):
    code, output = run(copy, "lint-imports", "--no-cache")
    assert code == 0, output


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('"""Planted."""\n\nimport os\n', "F401"),
        ('"""Planted."""\n\nprint("hello")\n', "T201"),
        (
            '"""Planted."""\n\ntry:\n    value = int("1")\nexcept Exception:\n    value = 0\n',
            "BLE001",
        ),
        ('"""Planted."""\n\n\ndef public():\n    return 1\n', "D103"),
    ],
)
def test_ruff_fails(copy: Path, text: str, rule: str):
    planted = "megatron_reason/ops/planted.py"
    (copy / planted).write_text('"""Planted."""\n')
    assert run(copy, "ruff", "check", "--no-cache", planted)[0] == 0
    (copy / planted).write_text(text)
    code, output = run(copy, "ruff", "check", "--no-cache", planted)
    assert code == 1
    assert rule in output


def test_ruff_format_fails(copy: Path):
    planted = "megatron_reason/ops/planted.py"
    (copy / planted).write_text('"""Planted."""\n\nvalue = {1:2}\n')
    assert run(copy, "ruff", "format", "--no-cache", "--check", planted)[0] == 1


def test_type_checker_fails(copy: Path):
    planted = copy / "megatron_reason" / "schema" / "planted.py"
    command = ("basedpyright", "--pythonpath", sys.executable, str(planted))
    planted.write_text('"""Planted."""\n\nvalue: int = 1\n')
    code, output = run(copy, *command)
    assert code == 0, output
    planted.write_text('"""Planted."""\n\nvalue: int = "one"\n')
    code, output = run(copy, *command)
    assert code == 1
    assert "reportAssignmentType" in output


def test_type_checker_reads_the_strict_settings(copy: Path):
    planted = copy / "megatron_reason" / "schema" / "planted.py"
    planted.write_text('"""Planted."""\n\n\ndef double(value):\n    return 2 * value\n')
    code, output = run(copy, "basedpyright", "--pythonpath", sys.executable, str(planted))
    assert code == 1
    assert "reportMissingParameterType" in output


def test_house_rules_fail(copy: Path):
    (copy / "megatron_reason" / "ops" / "planted.py").write_text('"""P."""\n\nassert True\n')
    code, output = run(copy, "python", "tools/check_rules.py")
    assert code == 1
    assert "megatron_reason/ops/planted.py:3  dumb-assert" in output
