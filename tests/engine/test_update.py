import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_reason.config.train import BatchConfig, TrainConfig
from megatron_reason.engine.update import check_batch
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import TrainState, create_method
from tests.distributed import spawn
from tests.engine import invariance
from tests.engine.test_moments import two_states

STATE = TrainState(4, 10)


def test_a_batch_without_supervised_tokens_is_refused() -> None:
    masked = TokenizedSample("m", Role.DEMO, (1, 2, 3), 3)
    for samples in ([], [masked, masked]):
        with pytest.raises(DataError, match="update 5") as caught:
            check_batch(samples, STATE)
        assert f"none of its {len(samples)} sequences" in str(caught.value)
    check_batch([masked, TokenizedSample("x", Role.DEMO, (1, 2, 3), 2)], STATE)


@pytest.mark.parametrize(
    "bad",
    [{"advantage": math.nan}, {"coef": math.inf}, {"old_logprobs": (-1.0, -math.inf)},
     {"rollout_logprobs": (math.nan, 0.0)}],
)  # fmt: skip
def test_constants_that_are_not_finite_are_named(bad: dict[str, object]) -> None:
    fine = TokenizedSample("fine", Role.ROLLOUT, (1, 2, 3), 1, old_logprobs=(-1.0, -2.0))
    wrong = TokenizedSample("wrong", Role.ROLLOUT, (1, 2, 3), 1, **bad)
    with pytest.raises(DataError, match="sequence wrong"):
        check_batch([fine, wrong], STATE)
    check_batch([fine], STATE)


def take_steep_steps(_rank: int, _world_size: int, folder: str) -> None:
    from megatron_reason.engine.guards import NonFiniteGuard
    from megatron_reason.engine.update import accumulate, update

    world = invariance.World.open(
        invariance.Layout(1, 1, 1), Path(folder, "model"), Path(folder, "model")
    )
    learner, drawn = create_method("sft"), invariance.samples()
    guard = NonFiniteGuard(Path(folder), max_consecutive=0)

    def step(**optim: float) -> tuple[dict[str, float], bool]:
        """Metrics of an update, and whether it changed the weights."""
        weights = [p.detach().clone() for p in world.trainable.model.parameters()]
        train = TrainConfig.model_validate({"updates": 10, "optim": {"lr": 1e-3, **optim}})
        metrics = update(world.trainable, learner, drawn, STATE, train, guard)
        after = world.trainable.model.parameters()
        return metrics, not all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))

    idle = create_method("hpt", policy_weight=0, sft_weight=0, entropy_bonus=0)
    with pytest.raises(ConfigError, match="update 5 every weight of its loss is 0"):
        accumulate(world.trainable, idle, drawn, STATE, BatchConfig())
    metrics, changed = step()
    assert changed
    assert "train/steep_skipped" not in metrics
    norm = metrics["train/grad_norm"]
    metrics, changed = step(skip_grad_norm=norm / 100)
    assert (metrics["train/steep_skipped"], changed) == (1.0, False)
    metrics, changed = step(skip_grad_norm=norm * 100)
    assert (metrics["train/steep_skipped"], changed) == (0.0, True)
    assert guard.skipped == 0


def test_an_update_with_too_large_a_gradient_is_left_out(tmp_path: Path) -> None:
    invariance.make_model(tmp_path / "model", tied=True)
    spawn(take_steep_steps, 1, str(tmp_path))


def burst_between_rollouts(_rank: int, _world_size: int, folder: str) -> None:
    from megatron_reason.engine.aggregation import means_of
    from megatron_reason.engine.guards import NonFiniteGuard
    from megatron_reason.engine.update import accumulate, update

    trainable = two_states(invariance.Layout(1, 1, 1), Path(folder, "model"))
    learner = create_method("relift", burst_size=4, burst_clip_grad=0.125, temperature=0.5)
    train = TrainConfig.model_validate({"updates": 10, "optim": {"lr": 1e-3, "clip_grad": 0.75}})
    guard = NonFiniteGuard(Path(folder), max_consecutive=0)
    drawn = invariance.samples()
    demos = [replace(sample, role=Role.DEMO) for sample in drawn]
    rollouts = [
        replace(sample, role=Role.ROLLOUT, advantage=1.0 - 2.0 * (index % 2))
        for index, sample in enumerate(drawn)
    ]

    seen: list[dict[str, float]] = []

    def after(samples: list[TokenizedSample], num_hard: int) -> tuple[float, list[int]]:
        """Clip norm of an update, and the steps that each set of moments has made after it."""
        now = TrainState(0, 10, num_hard)
        seen.append(update(trainable, learner, samples, now, train, guard))
        made = []
        for index in range(trainable.moments.number):
            with trainable.moments.each(index):
                states = trainable.optimizer.optimizer.state.values()
                made.append(max((int(state["step"]) for state in states), default=0))
        return trainable.optimizer.config.clip_grad, made

    assert after(rollouts, 0) == (0.75, [1, 0])
    plain = create_method("sft", mean="token_mean")
    likelihood = means_of(*accumulate(trainable, plain, demos, STATE, train.batch))["train/loss"]
    assert after(demos, 4) == (0.125, [1, 1])
    assert seen[-1]["train/sft"] == pytest.approx(likelihood, rel=1e-5), "at temperature 1"
    assert after(rollouts, 3) == (0.75, [2, 1])


def test_an_update_has_the_moments_clip_norm_and_temperature_that_its_plan_names(
    tmp_path: Path,
) -> None:
    invariance.make_model(tmp_path / "model", tied=True)
    spawn(burst_between_rollouts, 1, str(tmp_path))
