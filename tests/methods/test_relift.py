from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import TrainState, create_method
from tests import fixture_f, golden
from tests.loss import credited, run


@golden.cases("relift")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


def test_a_prompt_is_hard_if_nobody_solved_it() -> None:
    method = create_method("relift")
    assert credited(method, (0, 0)).is_hard
    assert not credited(method, (0, 1)).is_hard


def test_a_burst_comes_once_enough_wait() -> None:
    method = create_method("relift", burst_size=128)
    assert method.plan(TrainState(0, 9, num_hard=127)).hard_demos == 0
    assert method.plan(TrainState(0, 9, num_hard=127)).prompts == 64
    burst = method.plan(TrainState(0, 9, num_hard=140))
    assert (burst.hard_demos, burst.prompts) == (128, 0)


def test_bursts_have_moments_and_a_clip_norm_of_their_own_unless_told_otherwise() -> None:
    waiting = TrainState(0, 9, num_hard=128)
    method = create_method("relift")
    assert method.required().optimizer_states == 2
    assert (method.plan(waiting).optimizer_state, method.plan(waiting).clip_grad) == (1, 1.0)
    rollouts = method.plan(TrainState(0, 9))
    assert (rollouts.optimizer_state, rollouts.clip_grad) == (0, None)
    shared = create_method("relift", burst_moments=False, burst_clip_grad=None)
    assert shared.required().optimizer_states == 1
    assert (shared.plan(waiting).optimizer_state, shared.plan(waiting).clip_grad) == (0, None)


def test_a_burst_imitates_at_temperature_1_whatever_that_of_the_rollouts() -> None:
    method = create_method("relift", temperature=0.85)
    assert method.temperature == 0.85
    assert method.plan(TrainState(0, 9)).temperature is None
    assert method.plan(TrainState(0, 9, num_hard=128)).temperature == 1.0


def test_a_rollout_update_has_no_likelihood() -> None:
    batch = fixture_f.batch((Role.ROLLOUT,) * 4, advantages=(0.5, -0.5, -0.5, 0.5))
    _, _, means = run(create_method("relift"), batch)
    assert means["train/sft"] == 0.0
    assert means["train/pg"] != 0.0
