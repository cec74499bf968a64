import polars as pl
import pytest

from megatron_reason.errors import DataError
from megatron_reason.schema.batch import Role
from megatron_reason.training.data import TrainingSet


def some_rows() -> TrainingSet:
    rows = [
        {"sample_id": str(i), "role": "demo", "ids": [1] * (100 + i), "num_prompt_tokens": 2,
         "template_hash": "x"}
        for i in range(10)
    ]  # fmt: skip
    return TrainingSet(pl.DataFrame(rows).with_row_index("row"), {Role.DEMO: list(range(10))})


def test_ids_beyond_the_vocabulary_are_refused_by_name() -> None:
    rows = {"sample_id": ["fine", "wrong"], "ids": [[0, 60], [3, 61]]}
    data = TrainingSet(pl.DataFrame(rows), {})
    data.check_ids(62)
    with pytest.raises(DataError, match="sequence wrong") as caught:
        data.check_ids(61)
    assert "0..60" in str(caught.value)


def test_nothing_supervised_and_another_template_are_refused() -> None:
    data = some_rows()
    assert 0.9 < data.supervised_share() < 1
    length = pl.col("ids").list.len().cast(pl.Int64)
    blind = TrainingSet(data.frame.with_columns(num_prompt_tokens=length), data.pools)
    with pytest.raises(DataError, match=r"none of its \d+ positions is supervised"):
        blind.supervised_share()
    data.check_template("x")
    with pytest.raises(DataError, match="another tokenizer or template"):
        data.check_template("y")
