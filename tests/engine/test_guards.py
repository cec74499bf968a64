import math
from pathlib import Path

import pytest
import torch

from megatron_reason.engine.guards import NonFiniteGuard, check_packing
from megatron_reason.errors import NumericsError
from megatron_reason.files import read_json
from megatron_reason.schema.batch import Role, TokenizedSample


def test_a_non_finite_update_is_skipped_noted_and_tolerated_only_so_often(tmp_path: Path) -> None:
    guard = NonFiniteGuard(tmp_path, max_consecutive=2)
    assert guard.admits(1.0, 0, ["a"])
    assert not guard.admits(math.nan, 1, ["b", "c"])
    assert not guard.admits(math.inf, 2, ["d"])
    assert guard.admits(0.5, 3, ["e"])
    assert not guard.admits(math.nan, 4, ["f"])
    assert not guard.admits(math.nan, 5, ["g"])
    with pytest.raises(NumericsError, match="3 updates in a row"):
        guard.admits(math.nan, 6, ["h"])
    assert guard.skipped == 5
    report = read_json(tmp_path / "nonfinite_update_0000001.json")
    assert report == {"update": 1, "grad_norm": "nan", "samples": ["b", "c"]}


def test_leaking_attention_is_caught() -> None:
    samples = [TokenizedSample(n, Role.DEMO, (1, 2, 3), 1) for n in "ab"]

    def leaky(microbatches: list[list[TokenizedSample]]) -> list[list[float]]:
        return [[-1.0 - 0.5 * position for position, _ in enumerate(b)] for b in microbatches]

    with pytest.raises(NumericsError, match="sample a changes its log-probability"):
        check_packing(leaky, samples, torch.float32)

    def sound(microbatches: list[list[TokenizedSample]]) -> list[list[float]]:
        return [[-1.0 for _ in batch] for batch in microbatches]

    assert check_packing(sound, samples, torch.float32) == 0.0
