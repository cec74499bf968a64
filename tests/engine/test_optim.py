import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_reason.config.train import OptimConfig
from tests.distributed import spawn


def rates(total: int, **settings: object) -> list[float]:
    from megatron_reason.engine.optim import learning_rate

    config = OptimConfig.model_validate({"lr": 1e-3, **settings})
    return [learning_rate(config, update, total) for update in range(total)]


def check_schedules(rank: int, world_size: int) -> None:
    cosine = rates(10, warmup_fraction=0.2, min_lr=1e-4)
    assert cosine[:2] == pytest.approx([5e-4, 1e-3])
    assert cosine[2] == pytest.approx(1e-3)
    assert cosine[6] == pytest.approx((1e-3 + 1e-4) / 2)
    linear = rates(4, schedule="linear", warmup_fraction=0.0)
    assert linear == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert set(rates(5, schedule="constant", warmup_fraction=0.0)) == {1e-3}

    @given(st.integers(1, 300), st.floats(0, 0.9))
    def stays_within_bounds(total: int, warmup: float) -> None:
        values = rates(total, warmup_fraction=warmup, min_lr=1e-5)
        assert all(0 < value <= 1e-3 for value in values)
        assert max(values) == pytest.approx(1e-3)

    stays_within_bounds()


def test_schedules() -> None:
    spawn(check_schedules, 1)
