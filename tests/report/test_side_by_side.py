import shutil

import numpy as np
import pytest
import yaml

from megatron_reason.errors import DataError
from megatron_reason.report.page import build_comparison
from megatron_reason.report.side_by_side import read_runs
from megatron_reason.report.table import headline_of
from tests.report.runs import VARIANTS, folder_of, write_eval


@pytest.fixture
def other(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "other")


def test_models_of_all_runs_stand_in_one_table(finished_run, other, tmp_path):
    data = read_runs([finished_run, other])
    names = [f"{run}: {model}" for run in ("tiny", "other") for model in ("base", *VARIANTS)]
    assert data.models == names
    assert [row.model for row in headline_of(data).measured] == names
    assert {s.pool for s in data.selections} >= {"tiny: teacher_ppl", "other: teacher_ppl"}
    page = build_comparison([finished_run, other], tmp_path / "out").read_text()
    assert "<h1>tiny and other</h1>" in page
    assert "Configuration of other" in page
    assert (tmp_path / "out" / "table.md").read_text().count("other: ") == 1 + len(VARIANTS)
    assert read_runs([finished_run]).models == ["base", *VARIANTS]
    assert "What the runs differ in" not in page


def test_settings_that_differ_stand_beside_the_results(finished_run, other, tmp_path):
    path = other / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    settings.setdefault("train", {})["updates"] = 77
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    table = read_runs([finished_run, other]).differences
    assert table.header == ("run", "train.updates")
    assert [row[0] for row in table.rows] == ["tiny", "other"]
    assert table.rows[1][1] == "77" != table.rows[0][1]
    page = build_comparison([finished_run, other], tmp_path / "out").read_text()
    assert "What the runs differ in" in page
    assert '<td data-label="train.updates">77</td>' in page


def test_unlike_evaluations_are_refused_unless_forced(finished_run, other, tmp_path):
    rng = np.random.default_rng(0)
    write_eval(folder_of(other, "eval-sft"), "sft", rng, template_hash="another")
    with pytest.raises(DataError, match=r"(?s)template_hash 't' -> 'another'.*--force"):
        read_runs([finished_run, other])
    page = build_comparison([finished_run, other], tmp_path / "out", force=True).read_text()
    assert "These numbers must not be compared" in page


def test_runs_of_one_name_are_refused(finished_run, tmp_path):
    twin = shutil.copytree(finished_run, tmp_path / "x" / "tiny")
    with pytest.raises(DataError, match="same name"):
        read_runs([finished_run, twin])
