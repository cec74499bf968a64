import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_reason.engine.order import next_rows, planned_updates, rows_of_update
from megatron_reason.errors import DataError
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import UpdatePlan


@given(st.integers(1, 40), st.integers(0, 2**31), st.lists(st.integers(1, 30), max_size=6))
def test_the_stream_does_not_depend_on_how_it_is_cut(
    num_rows: int, seed: int, cuts: list[int]
) -> None:
    taken: list[int] = []
    for count in cuts:
        taken += next_rows(num_rows, seed=seed, consumed=len(taken), count=count)
    assert taken == next_rows(num_rows, seed=seed, consumed=0, count=sum(cuts))


def test_every_epoch_visits_every_row_once_in_another_order() -> None:
    rows = next_rows(50, seed=1, consumed=0, count=100)
    assert sorted(rows[:50]) == sorted(rows[50:]) == list(range(50))
    assert rows[:50] != rows[50:]


def test_roles_are_drawn_from_their_own_pools() -> None:
    pools = {Role.DEMO: [0, 2, 4], Role.NEGATIVE: [1, 3]}
    plan = UpdatePlan({Role.DEMO: 2, Role.NEGATIVE: 1})
    rows = rows_of_update(pools, plan, {Role.DEMO: 2}, seed=7)
    assert set(rows[:2]) <= {0, 2, 4}
    assert rows[2] in {1, 3}


def test_planned_updates_follow_the_scarcest_role() -> None:
    pools = {Role.DEMO: list(range(10)), Role.NEGATIVE: list(range(7))}
    plan = UpdatePlan({Role.DEMO: 2, Role.NEGATIVE: 2})
    assert planned_updates(pools, plan, epochs=2, updates=None) == 6
    assert planned_updates(pools, plan, epochs=None, updates=5) == 5


def test_too_few_rows_are_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match=r"takes 3 sequences of role 'demo'; the table has 2"):
        planned_updates({Role.DEMO: [0, 1]}, UpdatePlan({Role.DEMO: 3}), epochs=1, updates=None)
