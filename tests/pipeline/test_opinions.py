import json
from pathlib import Path

import pytest

from megatron_reason.pipeline import doctor, opinions
from megatron_reason.pipeline.opinions import compared
from megatron_reason.pipeline.parity import transformers_answers
from tools.make_tiny_model import make_tiny_model

RIGHT = [-1.0, -2.0, -3.0]
ROUNDED = [-1.00001, -2.0, -3.00002]
WRONG = [-1.5, -2.0, -3.5]


def test_agreement():
    found = compared({"transformers": RIGHT, "megatron": ROUNDED, "vllm": RIGHT})
    assert (found.verdict, found.outlier, found.num_tokens) == ("all agree", None, 3)
    assert [d.largest for d in found.differences] == pytest.approx([2e-5, 0, 2e-5])


@pytest.mark.parametrize("name", ["transformers", "megatron", "vllm"])
def test_the_one_that_disagrees_is_named(name: str):
    answers = {"transformers": RIGHT, "megatron": ROUNDED, "vllm": RIGHT} | {name: WRONG}
    found = compared(answers)
    assert found.outlier == name
    assert found.verdict == f"{name} disagrees with the others"
    gaps = [d.mean for d in found.differences if name in (d.first, d.second)]
    assert gaps == pytest.approx([1 / 3, 1 / 3], abs=1e-4)


def test_nobody_is_blamed_without_a_majority():
    two = compared({"transformers": RIGHT, "megatron": WRONG})
    three = compared({"transformers": RIGHT, "megatron": WRONG, "vllm": [-9.0, -9.0, -9.0]})
    for found in (two, three):
        assert found.outlier is None
        assert "nobody is in the majority" in found.verdict


def test_an_answer_that_is_no_number_is_a_disagreement():
    found = compared({"transformers": RIGHT, "megatron": [float("nan")] * 3, "vllm": RIGHT})
    assert found.outlier == "megatron"


def test_a_model_that_two_of_three_read_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Real programs; transformers is given another rotary base than Megatron and vLLM read."""
    pytest.importorskip("vllm")
    model = make_tiny_model("Qwen2ForCausalLM", tmp_path / "model", hidden_size=128)
    other = make_tiny_model("Qwen2ForCausalLM", tmp_path / "other", hidden_size=128)
    config = json.loads((other / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 20.0
    (other / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(
        opinions,
        "transformers_answers",
        lambda _model, sequences: transformers_answers(other, sequences),
    )
    findings = doctor.examine_model(str(model))
    verdicts = {finding.what: finding.verdict for finding in findings}
    assert verdicts == {
        "transformers / megatron": "wrong",
        "transformers / vllm": "wrong",
        "megatron / vllm": "ok",
        "model": "wrong",
    }
    assert findings[-1].found.startswith("transformers disagrees with the others (float32, ")
