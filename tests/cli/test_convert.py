import pytest

from megatron_reason.errors import ConversionError, TopologyError
from tests.cli.test_app import mreason
from tests.models.tiny import make


def test_import_then_verify_and_refusals(tmp_path):
    model = make("LlamaForCausalLM-tied", tmp_path / "model")
    target = tmp_path / "mine"
    assert mreason("convert", "import", str(model), str(target)).stdout.strip() == str(target)
    assert "tensors bit-identical" in mreason("convert", "verify", str(target)).stdout
    with pytest.raises(ConversionError, match="there already"):
        mreason("convert", "import", str(model), str(target))
    with pytest.raises(TopologyError):
        mreason("convert", "export", str(model), str(tmp_path / "x"), "--set",
                "parallel.pipeline_model_parallel_size=3")  # fmt: skip
