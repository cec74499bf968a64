"""Rules that turn curves of a training into plain warnings. All of them stand in this file.

A rule is a generator under `@rule`: it gets the metrics by name and yields the updates at which it
holds; one warning is made of each stretch of them. Thresholds are rough on purpose: a warning says
where to look. Not here: how metrics are read (`jsonl.py`) and shown (`report`, `cli`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Series = tuple[list[int], list[float]]
"""Updates and values of one metric."""
Curves = Mapping[str, Series]
Found = Iterator[tuple[int, str]]
"""Updates at which a rule holds, and what to say."""

WINDOW = 30
"""Updates over which a fall or a rise is looked for."""
_FEW = 5
_CALM = 10
"""Updates for which something that must not last may last."""


@dataclass(frozen=True)
class Alarm:
    """One warning."""

    step: int
    """Update at which it began."""
    rule: str
    text: str
    is_over: bool
    """Whether the newest update no longer shows it."""


RULES: dict[str, Callable[[Curves], Found]] = {}


def rule(name: str) -> Callable[[Callable[[Curves], Found]], Callable[[Curves], Found]]:
    """Decorator: enter a rule under `name`."""

    def enter(check: Callable[[Curves], Found]) -> Callable[[Curves], Found]:
        RULES[name] = check
        return check

    return enter


def alarms(rows: Sequence[Mapping[str, float]]) -> list[Alarm]:
    """Warnings about a training, by update.

    Args:
        rows: lines of `metrics.jsonl`, in order.
    """
    curves = curves_of(rows)
    last = max((int(row["step"]) for row in rows), default=0)
    found: list[Alarm] = []
    for name, check in RULES.items():
        by_step = dict(check(curves))
        steps = sorted(by_step)
        for index, step in enumerate(steps):
            if index and step - steps[index - 1] <= _FEW:
                continue
            stretch = [step]
            while (following := steps[index + len(stretch) :][:1]) and (
                following[0] - stretch[-1] <= _FEW
            ):
                stretch += following
            found.append(Alarm(step, name, by_step[step], stretch[-1] < last - _FEW))
    return sorted(found, key=lambda alarm: alarm.step)


def curves_of(rows: Sequence[Mapping[str, float]]) -> dict[str, Series]:
    """Metrics by name."""
    curves: dict[str, Series] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "time"):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(int(row["step"]))
                values.append(float(value))
    return curves


@rule("not finite")
def _not_finite(curves: Curves) -> Found:
    for name, (steps, values) in curves.items():
        if name.startswith("train/"):
            for step, value in zip(steps, values, strict=True):
                if not math.isfinite(value):
                    yield step, f"{name} is {value}"


@rule("updates skipped")
def _skipped(curves: Curves) -> Found:
    for name in ("train/nonfinite_skipped", "train/steep_skipped"):
        steps, values = curves.get(name, ([], []))
        for step, before, now in zip(steps, [0.0, *values], values, strict=False):
            if now > before:
                yield step, f"an update was skipped ({name})"


@rule("entropy fell")
def _entropy_fell(curves: Curves) -> Found:
    for name, series in _named(curves, "train/entropy_"):
        for step, now, most, since in _extremes(series, max):
            if most > 0 and now < 0.5 * most:
                yield step, f"{name} fell {100 * (1 - now / most):.0f}% in {since} steps"


@rule("entropy rose")
def _entropy_rose(curves: Curves) -> Found:
    for name, series in _named(curves, "train/entropy_"):
        for step, now, least, since in _extremes(series, min):
            if least > 0 and now > 3 * least:
                yield step, f"{name} rose to {now / least:.1f} times in {since} steps"


@rule("gradient spike")
def _gradient_spike(curves: Curves) -> Found:
    steps, values = curves.get("train/grad_norm", ([], []))
    for index in range(_CALM, len(values)):
        usual = _median(values[max(index - 50, 0) : index])
        if usual > 0 and values[index] > 10 * usual:
            yield steps[index], f"gradient norm {values[index]:.3g}, usually {usual:.3g}"


@rule("no signal")
def _no_signal(curves: Curves) -> Found:
    for step, share in _lasting(curves.get("groups/mixed"), lambda value: value < 0.1):
        yield (
            step,
            f"only {100 * share:.0f}% of the groups are mixed: the others, all right or all "
            "wrong, teach nothing",
        )


@rule("nothing right")
def _nothing_right(curves: Curves) -> Found:
    for step, _ in _lasting(curves.get("reward/mean"), lambda value: value <= 0):
        yield step, f"no reward for {_CALM} steps: check the grader, the template, the difficulty"


@rule("reward fell")
def _reward_fell(curves: Curves) -> Found:
    smooth = _smoothed(curves.get("reward/mean"))
    for step, now, most, since in _extremes(smooth, max):
        if most > 0 and now < 0.5 * most:
            yield step, f"reward fell from {most:.3g} to {now:.3g} in {since} steps"


@rule("answers cut")
def _answers_cut(curves: Curves) -> Found:
    for step, share in _lasting(curves.get("response_length/truncated"), lambda value: value > 0.3):
        yield step, f"{100 * share:.0f}% of the answers reach the token limit"


@rule("length")
def _length(curves: Curves) -> Found:
    smooth = _smoothed(curves.get("response_length/mean"))
    for step, now, least, since in _extremes(smooth, min):
        if least > 0 and now > 2 * least:
            yield step, f"answers grew from {least:.0f} to {now:.0f} tokens in {since} steps"
    for step, now, most, since in _extremes(smooth, max):
        if now < 0.5 * most:
            yield step, f"answers shrank from {most:.0f} to {now:.0f} tokens in {since} steps"


@rule("clipping")
def _clipping(curves: Curves) -> Found:
    for name in ("policy/clipfrac_high", "policy/clipfrac_low"):
        for step, share in _lasting(curves.get(name), lambda value: value > 0.3):
            yield step, f"{100 * share:.0f}% of the tokens are clipped ({name})"


@rule("engine and trainer disagree")
def _mismatch(curves: Curves) -> Found:
    for step, gap in _lasting(curves.get("mismatch/logprob_abs_diff"), lambda value: value > 0.1):
        yield step, f"log-probs of engine and trainer differ by {gap:.2g} nats a token"


@rule("grading fails")
def _grading_fails(curves: Curves) -> Found:
    for status in ("timeout", "crash", "parse_error"):
        steps, values = curves.get(f"reward/status_{status}", ([], []))
        for step, share in zip(steps, values, strict=True):
            if share > 0.05:
                yield step, f"{100 * share:.0f}% of the answers: {status} in grading"


@rule("slow")
def _slow(curves: Curves) -> Found:
    smooth = _smoothed(curves.get("time/step"))
    for step, now, least, since in _extremes(smooth, min):
        if least > 0 and now > 3 * least:
            yield step, f"a step takes {now:.3g} s, {least:.3g} s were enough {since} steps ago"


def _named(curves: Curves, prefix: str) -> Iterator[tuple[str, Series]]:
    yield from ((name, series) for name, series in curves.items() if name.startswith(prefix))


def _extremes(
    series: Series | None, extreme: Callable[[list[float]], float]
) -> Iterator[tuple[int, float, float, int]]:
    """Step, value, extreme of the window before it, and how many steps ago that was."""
    steps, values = series or ([], [])
    for index in range(1, len(values)):
        begin = index
        while begin > 0 and steps[begin - 1] >= steps[index] - WINDOW:
            begin -= 1
        finite = [value for value in values[begin:index] if math.isfinite(value)]
        if finite and math.isfinite(values[index]):
            bound = extreme(finite)
            place = max(i for i in range(begin, index) if values[i] == bound)
            yield steps[index], values[index], bound, steps[index] - steps[place]


def _lasting(series: Series | None, holds: Callable[[float], bool]) -> Iterator[tuple[int, float]]:
    """Steps at which something has held for `_CALM` measurements, with the newest value."""
    steps, values = series or ([], [])
    run = 0
    for step, value in zip(steps, values, strict=True):
        run = run + 1 if holds(value) else 0
        if run >= _CALM:
            yield step, value


def _smoothed(series: Series | None) -> Series:
    """Means of the last few values, from when there are that many."""
    steps, values = series or ([], [])
    means = [sum(values[i - _FEW + 1 : i + 1]) / _FEW for i in range(_FEW - 1, len(values))]
    return steps[_FEW - 1 :], means


def _median(values: Sequence[float]) -> float:
    ordered = sorted(value for value in values if math.isfinite(value))
    return ordered[len(ordered) // 2] if ordered else 0.0
