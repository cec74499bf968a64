import json

from tests.cli.test_app import mreason
from tests.report.runs import make_run


def test_analyse_names_the_files_it_wrote(tmp_path):
    run = make_run(tmp_path / "tiny")
    words = ["analyse", "gains", str(run), "--out", str(tmp_path / "out")]
    listed = json.loads(mreason(*words, "--json").stdout)
    assert listed == [f"{tmp_path}/out/gains_held_out.{kind}" for kind in ("png", "json")]
    assert mreason(*words).stdout.split() == listed
    assert "gains" in mreason("list", "analyses").stdout
