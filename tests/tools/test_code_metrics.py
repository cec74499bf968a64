"""The table's numbers, on a package small enough to count by hand."""

from pathlib import Path

import code_metrics
import pytest

CHAIN = '''"""Chain.

Two lines of docstring.
"""
# a comment

from package.other import g


def f(x: int) -> int:
    """Add one."""
    return g(
        x
    ) + 1


def _hidden(x):
    print(x)
'''
OTHER = '''"""Other."""
from package.chain import f


class Shape:
    def area(self):
        try:
            return 1
        except Exception:
            return f(0)
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""Package."""\n')
    (folder / "chain.py").write_text(CHAIN)
    (folder / "other.py").write_text(OTHER)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_chain.py").write_text("def test():\n    assert True\n")
    return folder


def test_counts_by_hand(package: Path):
    row = code_metrics.measure(package, package.parent / "tests")
    assert row["code lines"] == 7 + 7
    assert row["files"] == 3
    assert row["longest file"] == 7
    assert row["median / p90 file"] == "7 / 7"
    assert row["p90 / longest function"] == "5 / 5"
    assert row["functions > 80 lines"] == 0
    assert row["public docstrings"] == "33 %"  # f, but neither Shape nor Shape.area
    assert row["return types"] == "33 %"
    assert row["rooms in a cycle"] == 2
    assert row["test : code"] == round(2 / 14, 2)
    assert row["prints"] == 1
    assert row["broad excepts"] == 1


def test_rooms_without_a_way_back_are_no_cycle(package: Path):
    (package / "other.py").write_text("def g(x):\n    return x\n")
    assert code_metrics.measure(package, package.parent / "tests")["rooms in a cycle"] == 0


def test_a_copied_run_counts_once(package: Path):
    copied = "".join(f"value_{number} = {number}\n" for number in range(15))
    assert code_metrics.measure(package, package)["duplicates of 12+ lines"] == 0
    (package / "chain.py").write_text(copied)
    (package / "other.py").write_text("first = 0\n" + copied)
    assert code_metrics.measure(package, package)["duplicates of 12+ lines"] == 1


def test_config_keys_are_the_fields_of_config_classes(package: Path):
    (package / "chain.py").write_text(
        "class AConfig:\n    x: int = 1\n    y: int = 2\nclass Other:\n    z: int = 3\n"
    )
    assert code_metrics.measure(package, package)["config keys"] == 2
