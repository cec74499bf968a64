"""Which samples come next: a pure function of (seed, rows, consumed).

Each role's rows form an endless stream, one seeded permutation per epoch; an update takes the next
so many. Nothing else holds data state: resuming needs one integer per role, and
no rank can disagree with another.
"""

from collections.abc import Mapping

import numpy as np

from megatron_reason.errors import DataError
from megatron_reason.schema.batch import ROLE_INDEX, Role
from megatron_reason.schema.method import UpdatePlan


def next_rows(num_rows: int, *, seed: int, consumed: int, count: int) -> list[int]:
    """Row indices at positions [consumed, consumed + count) of the stream.

    Args:
        num_rows: rows in the pool.
        seed: seed of the permutations.
        consumed: rows taken before.
        count: rows to take.
    """
    rows: list[int] = []
    epoch, offset = divmod(consumed, num_rows)
    while len(rows) < count:
        order = np.random.default_rng([seed, epoch]).permutation(num_rows)
        rows += order[offset : offset + count - len(rows)].tolist()
        epoch, offset = epoch + 1, 0
    return rows


def rows_of_update(
    pools: Mapping[Role, list[int]], plan: UpdatePlan, consumed: Mapping[Role, int], seed: int
) -> list[int]:
    """Table rows of one update, role after role.

    Args:
        pools: table rows of each role.
        plan: sequences wanted of each role.
        consumed: sequences of each role taken by earlier updates.
        seed: the run's seed.
    """
    rows: list[int] = []
    for role, count in plan.counts.items():
        pool = pools[role]
        picks = next_rows(
            len(pool),
            seed=seed * len(ROLE_INDEX) + ROLE_INDEX[role],
            consumed=consumed.get(role, 0),
            count=count,
        )
        rows += [pool[pick] for pick in picks]
    return rows


def planned_updates(
    pools: Mapping[Role, list[int]], plan: UpdatePlan, *, epochs: float | None, updates: int | None
) -> int:
    """Number of optimizer updates: as asked for, or `epochs` passes over the scarcest role.

    Raises:
        DataError: a role has fewer rows than one update takes, or nothing would be trained.
    """
    per_epoch = []
    for role, count in plan.counts.items():
        available = len(pools.get(role, []))
        if available < count:
            raise DataError(
                "training table",
                f"an update takes {count} sequences of role '{role}'; the table has {available}.",
                f"Select more, or lower the method's count for '{role}' to {available}.",
            )
        per_epoch.append(available // count)
    if updates is not None:
        return updates
    assert epochs is not None, "TrainConfig guarantees epochs or updates"
    total = int(min(per_epoch) * epochs)
    if total < 1:
        raise DataError(
            "training table",
            f"{epochs} epochs of {min(per_epoch)} updates make no whole update.",
            "Raise train.epochs, or set train.updates.",
        )
    return total
