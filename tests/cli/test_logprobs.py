import polars as pl
import pytest

from megatron_reason.errors import DataError
from tests.cli.test_app import mreason
from tests.evaluation.stored import write_evaluation
from tools.make_tiny_model import make_tiny_model


def test_logprobs_lie_beside_the_answers_unless_told_otherwise(tmp_path):
    model = make_tiny_model("LlamaForCausalLM", tmp_path / "model")
    answers = write_evaluation(tmp_path / "answers", [[True, False], [False, False]])
    words = ["logprobs", str(model), "--set", "model.dtype=float32", "--set",
             "template.name=qwen_no_system", "--set", "where=wrong", "--answers"]  # fmt: skip
    assert "3 answers scored" in mreason(*words, str(answers)).stdout
    assert len(pl.read_parquet(answers / "token_scores.parquet")) == 3
    mreason(*words, str(answers), "--out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "token_scores.parquet").is_file()
    write_evaluation(tmp_path / "answers" / "more", [[True]])
    with pytest.raises(DataError, match="several evaluations"):
        mreason(*words, str(answers))
