"""What a suite is: the benchmarks of a paper and how it samples and grades them.

A module of `suites/` registers one. It is a set of defaults for `mreason eval`: each of them can be
changed with `--set`, and what was used stands in every `eval_card.json`. Not here: benchmarks
(`base.py`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megatron_reason.config.template import TemplateConfig
from megatron_reason.errors import ConfigError
from megatron_reason.evaluation.base import BENCHMARKS, find_benchmark
from megatron_reason.registry import Registry, suggest


@dataclass(frozen=True)
class Suite:
    """One protocol."""

    name: str
    source: str
    """Where it is described, and what of it is our reading."""
    samples: Mapping[str, int]
    """Samples of each problem, by benchmark."""
    temperature: float
    top_p: float
    max_tokens: int
    """Longest response in tokens."""
    max_model_len: int
    """Longest prompt plus response in tokens."""
    template: TemplateConfig
    """How problems become prompts."""
    reward: str | None = None
    """Grader of its benchmarks; None takes each one's own."""
    reward_of: Mapping[str, str] = field(default_factory=dict[str, str])
    """Grader of single benchmarks, where another one."""
    engine: Mapping[str, float] = field(default_factory=dict[str, float])
    """Further settings of the engine."""

    def settings(self) -> list[str]:
        """The protocol in the words of `--set`."""
        most = max(self.samples.values())
        others = {name: count for name, count in self.samples.items() if count != most}
        sampling = {
            "samples_per_prompt": most,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
        }
        return [
            *_benchmarks([*self.samples]),
            *(f"eval.sampling.{name}={value}" for name, value in sampling.items()),
            f"eval.samples_of={json.dumps(others)}",
            f"eval.benchmark_reward={json.dumps(self.reward)}",
            f"eval.reward_of={json.dumps(dict(self.reward_of))}",
            f"template={self.template.model_dump_json()}",
            f"engine.max_model_len={self.max_model_len}",
            *(f"engine.{name}={value}" for name, value in self.engine.items()),
        ]


SUITES: Registry[Suite] = Registry("suite", "megatron_reason.evaluation.suites")


def suite(entry: Suite) -> Suite:
    """Register `entry` under its name."""
    return SUITES.register(entry.name)(entry)


def suite_settings(words: Sequence[str]) -> list[str]:
    """Settings, in the words of `--set`, of what `--suite` was given.

    Args:
        words: each a list divided by commas, of names of benchmarks, paths of .jsonl or .parquet
            files, and at most one name of a suite, whose sampling then holds for all.

    Raises:
        ConfigError: no suite or benchmark of a name, or two suites.
    """
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    known = SUITES.names()
    chosen = list(dict.fromkeys(name for name in names if name in known))
    if len(chosen) > 1:
        raise ConfigError(
            "--suite",
            f"{' and '.join(chosen)} sample and grade in different ways.",
            "Evaluate one suite at a time, each with an --out of its own.",
        )
    others = [name for name in names if name not in known]
    for name in others:
        if not name.endswith((".jsonl", ".parquet")) and name not in BENCHMARKS.names():
            raise ConfigError(
                "--suite",
                f"there is no suite and no benchmark called '{name}'.",
                suggest(name, [*known, *BENCHMARKS.names()]),
            )
        find_benchmark(name, "--suite")
    if not chosen:
        return _benchmarks(others)
    protocol = SUITES.get(chosen[0])
    return [*protocol.settings(), *_benchmarks([*protocol.samples, *others])]


def _benchmarks(names: Sequence[str]) -> list[str]:
    return [f"eval.benchmarks={json.dumps(list(dict.fromkeys(names)))}"]
