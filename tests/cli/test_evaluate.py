import json

import pytest

from megatron_reason.errors import ConfigError, DataError
from megatron_reason.schema.records import Message, Problem
from megatron_reason.schema.tables import Kind, write_table
from tests.cli.test_app import mreason
from tools.make_tiny_model import make_tiny_model

SMALL = [
    "--set", "engine.name=transformers", "--set", "engine.max_model_len=256",
    "--set", "eval.sampling={samples_per_prompt: 2, max_tokens: 4}",
    "--set", "eval.num_entropy_responses=0", "--set", "model.dtype=float32",
]  # fmt: skip


def test_eval_measures_a_model_without_a_yaml_file(tmp_path):
    model = make_tiny_model("LlamaForCausalLM", tmp_path / "model")
    problem = Problem((Message("user", "1+1?"),), "2", "sums", split="heldout")
    write_table(tmp_path / "10-sums", Kind.PROBLEMS, [problem])
    words = ["eval", str(model), "--table", str(tmp_path / "10-sums"), "--out",
             str(tmp_path / "out"), *SMALL]  # fmt: skip
    found = json.loads(mreason(*words, "--json").stdout)
    assert found["sums"]["num_samples"] == 2
    assert found["sums"]["metrics"]["pass@1"]["n"] == 2
    shown = mreason(*words).stdout
    assert "pass@2" in shown
    assert "95 % interval" in shown


def test_eval_of_several_benchmarks_has_their_mean_and_a_folder_by_itself(tmp_path, monkeypatch):
    model = make_tiny_model("LlamaForCausalLM", tmp_path / "model")
    for name, count in (("one", 1), ("two", 2)):
        rows = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    words = ["eval", str(model), "--suite", "one.jsonl,two.jsonl", *SMALL, "--json"]
    found = json.loads(mreason(*words).stdout)
    assert [*found] == ["one", "two", "mean of one, two"]
    mean = found["mean of one, two"]
    assert mean["metrics"].keys() == {"pass@1"}
    assert (mean["num_problems"], mean["num_samples"]) == (3, 6)
    (folder,) = (tmp_path / "runs" / "eval").iterdir()
    assert folder.name == str(model).strip("/").replace("/", "-")
    assert (folder / "two" / "summary.json").is_file()


def test_eval_asks_for_something_to_measure_on(tmp_path):
    with pytest.raises(ConfigError, match="'table' or 'benchmarks'"):
        mreason("eval", str(tmp_path), "--out", str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="Did you mean 'max_problems'"):
        mreason("eval", str(tmp_path), "--out", str(tmp_path / "out"), "--suite", "aime24",
                "--set", "eval.max_problem=3")  # fmt: skip


def test_report_refuses_what_is_no_run(tmp_path):
    with pytest.raises(DataError, match="no run folder"):
        mreason("report", str(tmp_path))
