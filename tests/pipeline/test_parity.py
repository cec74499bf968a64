import json

import pytest

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import ConversionError
from megatron_reason.pipeline import conversion
from megatron_reason.pipeline.parity import agreement, transformers_answers
from tests.models.tiny import make


@pytest.mark.parametrize("layout", [(1, 1), (2, 1)])
def test_megatron_computes_what_transformers_computes(layout, tmp_path):
    model = make("Qwen2ForCausalLM-tied", tmp_path / "model")
    parallel = ParallelConfig(
        tensor_model_parallel_size=layout[0], pipeline_model_parallel_size=layout[1]
    )
    found = agreement(model, parallel, threads_per_process=1, log_file=tmp_path / "log")
    assert found.largest_logprob_gap < 1e-5
    assert found.top1_fraction == 1


def test_a_model_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    model = make("Qwen2ForCausalLM-tied", tmp_path / "model")
    other = make("Qwen2ForCausalLM-tied", tmp_path / "other")
    file = other / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.5}))
    monkeypatch.setattr(
        "megatron_reason.pipeline.parity.transformers_answers",
        lambda _source, sequences: transformers_answers(other, sequences),
    )
    with pytest.raises(ConversionError, match="nats in a token's log-probability"):
        conversion.verify(model, [], tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["agreement"]["top1_fraction"] < 1
    assert report["round_trip"]["differences"] == []
    assert not (model / "conversion_report.json").exists()
