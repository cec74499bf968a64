"""Ask a model the same problems with `mreason eval` and with a plain loop around transformers.

    python -m tools.compare_sampling gsm8k_test.jsonl --problems 100 --samples 8

Both draw at the same temperature and top-p, from other random numbers, so each should lie in the
other's interval. The plain loop shares the grader with the package and nothing else: chat template
and sampling are transformers' own, intervals a bootstrap over problems. Prints a markdown table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_reason.models.sources import resolve_model
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.records import Status

_DRAWS = 10_000
_METRICS = ("pass@1", "pass@{n}", "mean_length", "truncated_fraction", "no_answer_fraction")


def main() -> None:
    """Read the command line, ask twice, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path, help="JSON lines with `problem` and `answer`")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--batch", type=int, default=8, help="problems at once in the plain loop")
    parser.add_argument("--reward", default="numeric")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    started = time.monotonic()
    ours = _evaluated(chosen)
    between = time.monotonic()
    plain = _sampled(chosen)
    ended = time.monotonic()
    _show(chosen, ours, plain, (between - started, ended - between))


def _evaluated(chosen: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Value and interval of each metric, from `mreason eval`."""
    settings = {
        "eval.max_problems": chosen.problems,
        "eval.benchmark_reward": chosen.reward,
        "eval.num_entropy_responses": 0,
        "eval.sampling.samples_per_prompt": chosen.samples,
        "eval.sampling.temperature": chosen.temperature,
        "eval.sampling.top_p": chosen.top_p,
        "eval.sampling.max_tokens": chosen.max_tokens,
        "eval.sampling.seed": chosen.seed,
        "engine.name": chosen.engine,
        "model.dtype": "bfloat16",
    }
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "megatron_reason.cli.app", "eval", chosen.model, "--suite",
             str(chosen.file.resolve()), "--out", folder, "--json", *overrides],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    (summary,) = json.loads(done.stdout).values()
    return {
        name: (metric["value"], metric["low"], metric["high"])
        for name, metric in summary["metrics"].items()
    }


def _sampled(chosen: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """The same from transformers alone."""
    folder = resolve_model(chosen.model, Path("models"))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    torch.manual_seed(chosen.seed)
    with chosen.file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][: chosen.problems]
    responses: list[str] = []
    lengths: list[int] = []
    for start in range(0, len(rows), chosen.batch):
        asked = [[{"role": "user", "content": row["problem"]}]
                 for row in rows[start : start + chosen.batch]]  # fmt: skip
        inputs = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        drawn = model.generate(
            **inputs, do_sample=True, temperature=chosen.temperature, top_p=chosen.top_p, top_k=0,
            max_new_tokens=chosen.max_tokens, num_return_sequences=chosen.samples,
        )  # fmt: skip
        answers = drawn[:, inputs["input_ids"].shape[1] :]
        ended = answers == tokenizer.eos_token_id
        ends = torch.where(ended.any(1), ended.int().argmax(1) + 1, chosen.max_tokens + 1)
        lengths += ends.tolist()
        responses += tokenizer.batch_decode(answers, skip_special_tokens=True)
        print(f"{len(responses)} of {len(rows) * chosen.samples}", file=sys.stderr)
    golds = [str(row["answer"]) for row in rows for _ in range(chosen.samples)]
    with AnswerPool(reward=chosen.reward) as pool:
        verdicts = pool.grade_many(list(zip(golds, responses, strict=True)))
    status = np.array([verdict.status for verdict in verdicts]).reshape(len(rows), -1)
    length = np.array(lengths).reshape(len(rows), -1)
    is_right = status == Status.OK
    return {
        "pass@1": _interval(is_right.mean(1)),
        f"pass@{chosen.samples}": _interval(is_right.any(1)),
        "mean_length": _interval(np.minimum(length, chosen.max_tokens).mean(1)),
        "truncated_fraction": _interval((length > chosen.max_tokens).mean(1)),
        "no_answer_fraction": _interval((status == Status.NO_ANSWER).mean(1)),
    }


def _interval(by_problem: np.ndarray) -> tuple[float, float, float]:
    """Mean over problems, and the 95 % interval of drawing whole problems anew."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(by_problem), size=(_DRAWS, len(by_problem)))
    low, high = np.quantile(by_problem[drawn].mean(1), [0.025, 0.975])
    return float(by_problem.mean()), float(low), float(high)


def _show(
    chosen: argparse.Namespace, ours: dict[str, tuple[float, float, float]],
    plain: dict[str, tuple[float, float, float]], seconds: tuple[float, float],
) -> None:  # fmt: skip
    print(f"| metric | `mreason eval` ({chosen.engine}) | transformers alone | in each other's |")
    print("|---|---|---|---|")
    for metric in _METRICS:
        name = metric.format(n=chosen.samples)
        a, b = ours[name], plain[name]
        agree = a[1] <= b[0] <= a[2] and b[1] <= a[0] <= b[2]
        cells = [f"{v:.3g} ({low:.3g} to {high:.3g})" for v, low, high in (a, b)]
        print(f"| {name} | {' | '.join(cells)} | {'yes' if agree else 'NO'} |")
    print(f"| seconds, starts included | {seconds[0]:.0f} | {seconds[1]:.0f} | |")


if __name__ == "__main__":
    main()
