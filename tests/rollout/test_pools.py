import pytest

from megatron_reason.rollout.pools import HardPool
from megatron_reason.schema.method import TrainState, create_method


def test_golden_pushes_and_bursts() -> None:
    """Pushes of 100, 40 and 130: a burst after the second leaves 12, one after the third 14."""
    method = create_method("relift")
    pool, bursts, left = HardPool(), [], []
    for push, size in enumerate((100, 40, 130)):
        pool = pool.pushed([f"{push}-{i}" for i in range(size)])
        burst = method.plan(TrainState(push, 9, num_hard=len(pool))).hard_demos
        if burst:
            taken, pool = pool.taken(burst)
            bursts.append(taken)
            left.append(len(pool))
    assert left == [12, 14]
    newest = [name for name in bursts[0] if name.startswith("1-")]
    older = [name for name in bursts[0] if name.startswith("0-")]
    assert (len(newest), len(older)) == (40, 88)


def test_a_prompt_waits_only_once() -> None:
    pool = HardPool().pushed(["a", "b", "a"]).pushed(["c", "b"])
    assert pool.problem_ids == ("c", "a", "b")
    with pytest.raises(ValueError, match="4 prompts wanted, 3 wait"):
        pool.taken(4)
