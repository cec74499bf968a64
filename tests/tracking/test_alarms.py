import pytest

from megatron_reason.tracking.alarms import RULES, alarms


def rows(**curves):
    length = max(len(values) for values in curves.values())
    return [
        {"step": step + 1, "time": float(step)}
        | {name: values[step] for name, values in curves.items() if step < len(values)}
        for step in range(length)
    ]


def metrics(name: str, values) -> list[dict[str, float]]:
    return rows(**{name: list(values)})


CASES = {
    "not finite": ("train/loss", [1.0, float("nan"), 1.0], 2, "train/loss is nan"),
    "updates skipped": ("train/nonfinite_skipped", [0, 0, 1, 1], 3, "skipped"),
    "entropy fell": ("train/entropy_rollout", [1 - 0.03 * i for i in range(28)], 18, "fell 51%"),
    "entropy rose": ("train/entropy_demo", [0.2 + 0.05 * i for i in range(20)], 10, "3.2 times"),
    "gradient spike": ("train/grad_norm", [1.0] * 20 + [30.0] + [1.0] * 3, 21, "usually 1"),
    "no signal": ("groups/mixed", [0.5] * 3 + [0.05] * 12, 13, "only 5%"),
    "nothing right": ("reward/mean", [0.0] * 11, 10, "no reward for 10 steps"),
    "reward fell": ("reward/mean", [0.8] * 12 + [0.1] * 12, 15, "fell from 0.8"),
    "answers cut": ("response_length/truncated", [0.5] * 12, 10, "50% of the answers"),
    "length": ("response_length/mean", [100.0] * 10 + [300.0] * 10, 13, "grew from 100"),
    "clipping": ("policy/clipfrac_high", [0.4] * 12, 10, "40% of the tokens"),
    "engine and trainer disagree": ("mismatch/logprob_abs_diff", [0.3] * 11, 10, "0.3 nats"),
    "grading fails": ("reward/status_timeout", [0.0, 0.2], 2, "20% of the answers: timeout"),
    "slow": ("time/step", [1.0] * 10 + [9.0] * 6, 12, "a step takes"),
}


def test_every_rule_has_a_case():
    assert CASES.keys() == RULES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_rule_speaks_once_when_it_begins_to_hold(name: str):
    metric, values, step, words = CASES[name]
    found = [alarm for alarm in alarms(metrics(metric, values)) if alarm.rule == name]
    assert [alarm.step for alarm in found] == [step]
    assert words in found[0].text


@pytest.mark.parametrize("name", CASES)
def test_a_rule_is_silent_about_steady_curves(name: str):
    metric = CASES[name][0]
    steady = {"groups/mixed": 0.5, "reward/mean": 0.5, "time/step": 1.0,
              "train/nonfinite_skipped": 0.0}.get(metric, 0.01)  # fmt: skip
    assert alarms(metrics(metric, [steady] * 60)) == []


def test_slow_changes_are_no_alarm_and_old_ones_are_over():
    assert alarms(metrics("train/entropy_rollout", [1 - 0.005 * i for i in range(150)])) == []
    fell = [1.0] * 5 + [0.1] * 100
    (alarm,) = alarms(metrics("train/entropy_rollout", fell))
    assert (alarm.step, alarm.is_over) == (6, True)
    (fresh,) = alarms(metrics("train/entropy_rollout", fell[:10]))
    assert not fresh.is_over
    assert alarms([]) == []
