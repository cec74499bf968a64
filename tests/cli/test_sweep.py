import json
from pathlib import Path

import pytest

from megatron_reason.config.load import load_config
from megatron_reason.config.sweep import SweepConfig
from megatron_reason.errors import ConfigError
from megatron_reason.pipeline.run_config import RunConfig
from tests.cli.test_app import mreason
from tests.report.runs import make_run

ROOT = Path(__file__).parent.parent.parent
GRIDS = sorted((ROOT / "examples" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_run_of_a_sweep_is_one_that_can_be(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    grid = load_config(path, [], SweepConfig)
    seen = set()
    for index, point in enumerate(grid.points()):
        verb, recipe, *words = grid.arguments(index)
        assert verb == "run"
        config = load_config(Path(recipe), words[1::2], RunConfig)
        assert config.run.name == f"{grid.name}-{index}"
        seen.add((config.train.optim.lr, config.run.seed, str(config.variants)))
        assert len(point) == len(grid.grid)
    assert len(seen) == len(grid.points()), "two runs of the sweep are the same"


def test_a_key_that_no_sweep_has_is_refused(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("name: x\nrecipe: y.yaml\ngrid: {a: [1]}\nexecutor: {nodse: 2}\n")
    with pytest.raises(ConfigError, match=r"grid.yaml:4  executor"):
        load_config(path, [], SweepConfig)


def test_what_was_measured_is_collected_in_one_table(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        f"name: s\nrecipe: r.yaml\ndir: {tmp_path}/runs\ngrid: {{train.optim.lr: [0.1, 0.2]}}\n"
    )
    for index in range(2):
        run = tmp_path / "runs" / f"s-{index}"
        (run / "20-eval-sft").mkdir(parents=True)
        (run / "10-train-sft").mkdir()
        summary = {"metrics": {"pass@1": {"value": 0.25 + index}}}
        (run / "20-eval-sft" / "summary.json").write_text(json.dumps(summary))
        lines = [{"train/loss": 9.0}, {"train/loss": 1.5 + index}]
        (run / "10-train-sft" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = json.loads(mreason("sweep", str(path), "--collect", "--json").stdout)
    assert [row["settings"] for row in rows] == [{"train.optim.lr": 0.1}, {"train.optim.lr": 0.2}]
    assert [row["state"] for row in rows] == ["not finished"] * 2
    assert rows[1]["measured"] == {"sft pass@1": 1.25, "sft loss": 2.5}
    assert json.loads((tmp_path / "runs" / "s.json").read_text()) == rows
    shown = mreason("sweep", str(path), "--collect").stdout
    assert "train.optim.lr" in shown
    assert "1.25" in shown
    assert "Report" not in shown


def test_finished_runs_are_shown_side_by_side(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        f"name: s\nrecipe: r.yaml\ndir: {tmp_path}/runs\ngrid: {{run.seed: [1, 2, 3]}}\n"
    )
    for index in range(2):
        report = make_run(tmp_path / "runs" / f"s-{index}") / "report"
        report.mkdir(exist_ok=True)
        (report / "index.html").write_text("")
    shown = mreason("sweep", str(path), "--collect").stdout
    assert "not finished" in shown
    assert "Report:" in shown
    page = (tmp_path / "runs" / "s" / "index.html").read_text()
    assert "s-0" in page
    assert "s-1" in page
    assert "s-2" not in page
