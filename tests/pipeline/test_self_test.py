import tempfile

import pytest

from megatron_reason.pipeline import self_test as module
from megatron_reason.pipeline.self_test import self_test


@pytest.fixture(autouse=True)
def _temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_training_an_engine_and_grading_work_here(tmp_path):
    findings = list(self_test(["transformers"]))
    assert [(f.what, f.verdict) for f in findings] == [
        ("forward pass", "ok"), ("backward pass", "ok"), ("updates", "ok"),
        ("engine transformers", "ok"), ("grading", "ok"),
    ]  # fmt: skip
    found = {finding.what: finding.found for finding in findings}
    assert found["forward pass"].endswith("6.24 is a random model's")
    assert "on 2 ranks (gloo)" in found["updates"]
    assert found["engine transformers"] == "64 tokens, 184 log-probs"
    assert not list(tmp_path.glob("mreason-self-test-*"))


def test_what_does_not_work_says_why_and_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LENGTH", 5000)
    training, transformers, server, grading = self_test(["transformers", "vllm-server"])
    assert (training.what, training.verdict) == ("training", "wrong")
    assert "a sequence of 4999 tokens does not fit" in training.found
    assert "scripts/quickstart.sh" in training.way_out
    assert [one.verdict for one in (transformers, server, grading)] == ["wrong", "wrong", "ok"]
    assert "needs either URLs or a folder" in server.found
    assert "Give engine.servers" in server.way_out
    # The logs that are spoken of are there.
    (folder,) = tmp_path.glob("mreason-self-test-*")
    assert str(folder / "logs" / "self-test.log") in training.way_out
    assert (folder / "logs" / "self-test.log").is_file()
