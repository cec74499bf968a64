from pathlib import Path

import pytest

from tests.report.runs import make_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run; tests that change it copy it first."""
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")
