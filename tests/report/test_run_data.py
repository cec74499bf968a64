import shutil

import numpy as np
import pytest

from megatron_reason.report.run_data import read_run
from tests.report.runs import EDGES, NUM_UPDATES, TARGET, VARIANTS, finish, folder_of, write_eval


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def test_a_finished_run_is_read_whole(finished_run):
    data = read_run(finished_run)
    assert data.troubles == []
    assert data.models == ["base", *VARIANTS]
    assert {name: len(frame) for name, frame in data.training.items()} == dict.fromkeys(
        VARIANTS, NUM_UPDATES
    )
    assert [m.model for m in data.measurements] == ["base", *VARIANTS]
    assert data.problem_sets == ["teacher (held out)"]
    assert data.incomparable() == []
    assert {stage.state for stage in data.stages if stage.kind != "report"} == {"done"}
    assert data.stages[0].refused == {"perplexity is not finite": 2}


def test_selections_know_their_pool_their_variants_and_their_aim(finished_run):
    found = {selection.name: selection for selection in read_run(finished_run).selections}
    assert found["random"].variants == ("sft",)
    assert found["promote"].variants == ("oxa_mle", "oxa_full")
    assert found["suppress"].variants == ("oxa_full",)
    assert (found["promote"].pool, len(found["promote"].candidates)) == ("teacher_ppl", 180)
    assert (found["suppress"].pool, len(found["suppress"].candidates)) == ("self_ppl", 90)
    assert found["suppress"].role == "negative"
    assert (found["promote"].target.edges, found["promote"].target.counts) == (EDGES, TARGET)
    assert found["random"].target is None


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("eval-sft", "summary.json"), ("eval-sft", "generations.parquet"),
        ("eval-sft", "eval_card.json"), ("train-sft", "metrics.jsonl"),
        ("promote", "samples.parquet"), ("promote", "selection.json"), ("promote", "stage.json"),
        ("teacher_ppl", "samples.parquet"), ("teacher_ppl", "quarantine.parquet"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("content", [b"{not right\n", b"", b"[]", b"\xff\xfe"])
def test_a_damaged_file_is_named_and_costs_only_its_own_part(run, stage, file, content):
    damaged = folder_of(run, stage) / file
    assert damaged.is_file()
    damaged.write_bytes(content)
    data = read_run(run)
    # The last line of metrics may be unfinished.
    if file != "metrics.jsonl" or content.endswith(b"\n"):
        (trouble,) = data.troubles
        assert damaged.name in trouble
    assert len(data.measurements) >= len(VARIANTS)
    assert len(data.training) >= len(VARIANTS) - 1
    assert len(data.selections) >= 3


def test_training_that_is_under_way_is_shown(run):
    folder = folder_of(run, "train-sft")
    (folder / "stage.json").unlink()
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 11, "tra')
    data = read_run(run)
    assert len(data.training["sft"]) == NUM_UPDATES
    states = {stage.name: stage.state for stage in data.stages}
    assert (states["train-sft"], states["train-sft_lp"]) == ("not done", "done")


def test_a_stage_made_with_other_settings_is_marked(run):
    finish(folder_of(run, "promote"), "promote", "curate", hash="another")
    states = {stage.name: stage.state for stage in read_run(run).stages}
    assert (states["promote"], states["random"]) == ("changed", "done")


def test_unlike_evaluations_are_told_apart(run):
    write_eval(
        folder_of(run, "eval-sft_lp"), "sft_lp", np.random.default_rng(0), template_hash="other"
    )
    (reason,) = read_run(run).incomparable()
    assert reason.startswith("base and sft_lp on teacher (held out): template_hash")


def test_missing_settings_leave_selections_without_pool(run):
    (run / "config.yaml").unlink()
    data = read_run(run)
    assert data.troubles == []
    assert {s.pool for s in data.selections} == {""}
    assert all(s.candidates.is_empty() and not s.rows.is_empty() for s in data.selections)
