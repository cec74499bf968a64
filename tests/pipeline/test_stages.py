"""A whole run on a tiny random model: every kind of stage, on two worker processes."""

import json

import polars as pl
import pytest

from megatron_reason.evaluation.summary import read_summary
from megatron_reason.pipeline.execute import execute
from megatron_reason.pipeline.manifest import read_manifest
from megatron_reason.pipeline.plan import make_plan
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.pipeline.stages import HUGGINGFACE
from megatron_reason.report.run_data import read_run
from megatron_reason.schema.tables import Kind, read_table
from tools.make_tiny_model import make_tiny_model

CURATE = [
    {"stage": "ingest", "name": "teacher", "source": "reasoning_gym:gsm_symbolic", "size": 8,
     "solutions_per_problem": 2, "heldout_fraction": 0.4},
    {"stage": "grade", "name": "graded", "table": "teacher", "keep": "correct"},
    {"stage": "score", "name": "scored", "table": "graded"},
    {"stage": "select", "name": "demos", "table": "scored", "role": "demo", "count": 4,
     "where": "correct", "rule": {"name": "lowest"}, "allow_shortage": True},
    {"stage": "mix", "name": "mixed", "tables": [{"table": "demos"}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run folder, configuration) of a finished run."""
    folder = tmp_path_factory.mktemp("whole")
    model = make_tiny_model("LlamaForCausalLM", folder / "model", max_position_embeddings=4096)
    config = RunConfig.model_validate(
        {
            "run": {"name": "whole", "dir": folder / "runs"},
            "model": {"path": str(model), "dtype": "float32"},
            "engine": {"name": "transformers", "max_model_len": 4096},
            "launch": {"processes": 2},
            "curate": CURATE,
            "train": {"updates": 2, "optim": {"lr": 1e-2}},
            "variants": {
                "sft": {"table": "mixed", "method": {"name": "sft", "demos_per_update": 2}}
            },
            "eval": {
                "table": "teacher", "max_problems": 2, "num_entropy_responses": 3,
                "sampling": {"samples_per_prompt": 2, "max_tokens": 8},
            },
        }
    )  # fmt: skip
    return execute(config), config


def test_every_stage_is_done_and_the_report_is_there(finished):
    folder, config = finished
    for stage in make_plan(config):
        assert read_manifest(folder / stage.folder).hash == stage.hash
    assert "sft" in (folder / "report" / "index.html").read_text()


def test_stage_on_ranks_scored_every_row(finished):
    folder, _ = finished
    scored = read_table(folder / "30-scored", Kind.SAMPLES, filled=("ppl", "mean_entropy"))
    assert len(scored) == read_manifest(folder / "20-graded").num_rows
    assert len(scored) == read_manifest(folder / "30-scored").num_rows


def test_training_moved_the_weights_and_wrote_metrics(finished):
    folder, config = finished
    trained = folder / "70-train-sft"
    assert read_manifest(trained).num_rows == 2
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 2
    before = (folder.parent.parent / "model" / "model.safetensors").read_bytes()
    after = (trained / HUGGINGFACE / "model.safetensors").read_bytes()
    assert len(before) == len(after)
    assert before != after
    assert config.model.path != str(trained)


def test_each_model_was_measured_on_heldout_problems_with_its_own_weights(finished):
    folder, _ = finished
    teacher = read_table(folder / "10-teacher", Kind.PROBLEMS)
    heldout = set(teacher.filter(teacher["split"] == "heldout")["problem_id"])
    responses = []
    for name in ("60-eval-base", "80-eval-sft"):
        generations = read_table(folder / name, Kind.GENERATIONS)
        assert len(generations) == 4
        assert set(generations["problem_id"]) <= heldout
        assert generations["mean_entropy"].count() == 3
        summary = read_summary(folder / name)
        assert {"pass@1", "pass@2", "mean_entropy"} <= summary.metrics.keys()
        assert read_manifest(folder / name).num_rows == 4
        responses.append(generations["response"].to_list())
    weights = [
        json.loads((folder / name / "eval_card.json").read_text())["weights"]
        for name in ("60-eval-base", "80-eval-sft")
    ]
    assert weights[0] != weights[1]
    assert responses[0] != responses[1]


def test_logs_and_jobs_of_worker_processes_are_kept(finished):
    folder, _ = finished
    assert "2 processes" in (folder / "logs" / "train-sft.log").read_text()
    job = json.loads((folder / "jobs" / "train-sft.json").read_text())
    assert (job["method"]["name"], job["method"]["demos_per_update"]) == ("sft", 2)


def test_answers_outlive_a_change_of_what_is_asked(finished, tmp_path):
    folder, config = finished
    stored, raw = folder / "60-eval-base", config.model_dump()
    before = read_table(stored, Kind.GENERATIONS)
    raw["eval"]["sampling"]["samples_per_prompt"] = 3
    execute(RunConfig.model_validate(raw), only="eval-base")
    after = read_table(stored, Kind.GENERATIONS)
    assert len(after) == 6
    kept = after.filter(pl.col("sample_index") < 2)
    assert kept.drop("mean_entropy").equals(before.drop("mean_entropy"))
    other = tmp_path / "other.jsonl"
    other.write_text('{"problem": "What is 1 + 1?", "answer": "2"}\n', encoding="utf-8")
    raw["eval"] |= {"table": None, "benchmarks": [str(other)]}
    execute(RunConfig.model_validate(raw), only="eval-base")
    assert read_table(stored / "before-1", Kind.GENERATIONS).equals(after)
    shown = [m.problem_set for m in read_run(folder).measurements if m.model == "base"]
    assert shown == ["other"]
