import math
from pathlib import Path

import pytest
import torch

from megatron_reason.engine.guards import NonFiniteGuard, check_packing, kept_batch
from megatron_reason.errors import NumericsError
from megatron_reason.files import read_json
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.tables import Kind, read_table


def test_a_non_finite_update_is_skipped_noted_and_tolerated_only_so_often(tmp_path: Path) -> None:
    guard = NonFiniteGuard(tmp_path, max_consecutive=2)
    one, two = (TokenizedSample(n, Role.DEMO, (1, 2, 3), 1) for n in "ab")
    assert guard.admits(1.0, 0, [one])
    assert not guard.admits(math.nan, 1, [one, two])
    assert not guard.admits(math.inf, 2, [two])
    assert guard.admits(0.5, 3, [one])
    assert not guard.admits(math.nan, 4, [one])
    assert not guard.admits(math.nan, 5, [one])
    with pytest.raises(NumericsError, match="3 updates in a row"):
        guard.admits(math.nan, 6, [one])
    assert guard.skipped == 5
    kept = tmp_path / "nonfinite_update_0000001"
    assert read_json(kept / "report.json") == {"update": 1, "grad_norm": "nan"}
    table = read_table(kept, Kind.TOKENS)
    assert table["sample_id"].to_list() == ["a", "b"]
    assert table["ids"].to_list() == [[1, 2, 3]] * 2
    assert table["num_prompt_tokens"].to_list() == [1, 1]


def test_a_batch_of_rollouts_comes_back_with_all_that_was_trained_on(tmp_path: Path) -> None:
    batch = [
        TokenizedSample("a", Role.ROLLOUT, (1, 2, 3), 1, group="p", advantage=-0.5, coef=0.25,
                        old_logprobs=(-1.0, -0.125), rollout_logprobs=(-1.0, math.inf)),
        TokenizedSample("b", Role.DEMO, (4, 5), 1, group="p", is_correct=True),
    ]  # fmt: skip
    assert not NonFiniteGuard(tmp_path, max_consecutive=2).admits(math.nan, 7, batch)
    assert kept_batch(tmp_path / "nonfinite_update_0000007") == batch


def test_one_rank_keeps_the_batch(tmp_path: Path) -> None:
    guard = NonFiniteGuard(tmp_path, max_consecutive=2, writes=False)
    assert not guard.admits(math.nan, 0, [TokenizedSample("a", Role.DEMO, (1, 2, 3), 1)])
    assert not any(tmp_path.iterdir())


def test_leaking_attention_is_caught() -> None:
    samples = [TokenizedSample(n, Role.DEMO, (1, 2, 3), 1) for n in "ab"]

    def leaky(microbatches: list[list[TokenizedSample]]) -> list[list[float]]:
        return [[-1.0 - 0.5 * position for position, _ in enumerate(b)] for b in microbatches]

    with pytest.raises(NumericsError, match="sample a changes its log-probability"):
        check_packing(leaky, samples, torch.float32)

    def sound(microbatches: list[list[TokenizedSample]]) -> list[list[float]]:
        return [[-1.0 for _ in batch] for batch in microbatches]

    assert check_packing(sound, samples, torch.float32) == 0.0
