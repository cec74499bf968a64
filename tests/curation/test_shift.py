import json

import polars as pl
import pytest

from megatron_reason.curation.shift import Shift, ShiftConfig
from megatron_reason.errors import DataError
from megatron_reason.schema.records import Origin
from tests.curation.stages import context, sample, write_samples


def scored(number, nll, tokens, origin=Origin.EXPERT, **filled):
    filled = {"scorer": "model:raw"} | filled
    return sample(number, nll_sum=nll, num_tokens=tokens, origin=origin, **filled)


BEFORE = [scored(0, 40.0, 20), scored(1, 30.0, 10), scored(2, 50.0, 25), scored(3, 1.0, 1)]
AFTER = [
    scored(0, 10.0, 10, Origin.POLICY),
    scored(1, 5.0, 10, Origin.POLICY),
    scored(2, 50.0, 25, Origin.EXPERT),
]


def shift(tmp_path, before, after):
    inputs = {
        "old": write_samples(tmp_path / "old", before),
        "new": write_samples(tmp_path / "new", after),
    }
    stage = Shift(ShiftConfig(name="shift", before="old", after="new"))
    return stage.run(context(tmp_path / "out", inputs))


def test_means_by_stage_of_the_rewriting(tmp_path):
    result = shift(tmp_path, BEFORE, AFTER)
    assert (result.num_rows, dict(result.counts)) == (3, {"only_in_one": 1})
    found = json.loads((tmp_path / "out/shift.json").read_text())
    assert found["scorer"] == "model:raw"
    own, expert, every = (found["mean"][name] for name in ("policy", "expert", "all"))
    assert (own["problems"], own["logprob_before"], own["logprob_after"]) == (2, -35.0, -7.5)
    assert own["per_token_before"] == pytest.approx(-2.5)
    assert own["per_token_after"] == pytest.approx(-0.75)
    # Gains of 1 and 2.5 nats: a standard deviation of 1.5 / sqrt(2), over sqrt(2).
    assert own["gain_per_token"] == pytest.approx(1.75)
    assert own["gain_high"] == pytest.approx(1.75 + 1.96 * 0.75)
    assert expert["gain_per_token"] == expert["gain_low"] == 0
    assert every["problems"] == 3
    assert len(pl.read_parquet(tmp_path / "out/shift.parquet")) == 3


def test_refusals(tmp_path):
    with pytest.raises(DataError, match="no problem in common"):
        shift(tmp_path / "a", BEFORE[3:], AFTER)
    with pytest.raises(DataError, match="scored in different ways: model:prompt, model:raw"):
        shift(tmp_path / "b", BEFORE, [scored(0, 1.0, 1, scorer="model:prompt")])
    with pytest.raises(DataError, match="1 rows of 'old' are further responses"):
        shift(tmp_path / "c", [*BEFORE, scored(9, 1.0, 1, problem=0)], AFTER)
