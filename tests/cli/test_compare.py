import json

from tests.cli.test_app import mreason
from tests.report.runs import make_run


def test_compare_shows_differences_with_tests(tmp_path):
    run = make_run(tmp_path / "tiny")
    words = ["compare", f"{run}:base", f"{run}:oxa_full"]
    (found,) = json.loads(mreason(*words, "--json").stdout)
    assert found["tests"]["pass@1"]["num_problems"] == 12
    shown = mreason(*words).stdout
    assert "pass@4" in shown
    assert f"{found['tests']['pass@1']['value']:+.4g}" in shown
