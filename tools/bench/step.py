"""Where the time of a GRPO step goes, and how much of vLLM's speed the rollouts keep.

    python tools/bench/step.py --updates 8

Trains SmolLM2-135M on generated problems with `mreason run`, once with the rollouts of a step made
by its own weights and once one step ahead, and prints the time line that each run logged. Behind
it vLLM alone: a plain script with `vllm.LLM`, the same lengths, memory and cores, which answers the
same prompts in the same batches, without seeds, log-probs or grading; twice by `llm.chat`, text in
and out, twice by `llm.generate` on token ids, without a tokenizer, and twice so in one process. The
learning rate is so small that all answer with the same weights. First steps are left out on both
sides. Goes to `tools/bench/results/`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

MAX_MODEL_LEN, MAX_NUM_SEQS, KV_CACHE_MB = 640, 64, 512
MOMENTS = ("rollout", "grade", "prepass", "train", "sync", "wait", "step")
AHEAD = {"together": 0, "ahead": 1}
"""Steps ahead of each variant."""
PEERS: dict[str, dict[str, str]] = {
    "text": {}, "ids": {}, "ids, in one process": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
}  # fmt: skip
"""What vLLM alone is given and gives back, and what it is started with: its core has a process of
its own unless it is told otherwise, as our engine tells it."""


@dataclass(frozen=True)
class TimeLine:
    """Means over the steps of one run, the first left out."""

    name: str
    steps: int
    tokens_per_s: float
    """Generated tokens a second, while the engine generated."""
    tokens: float
    """Generated tokens a step."""
    seconds: dict[str, float]
    """Of each moment of a step."""

    @property
    def idle(self) -> float:
        """Share of a step in which the trainer waits for rollouts."""
        return self.seconds["wait"] / self.seconds["step"]


def settings(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """The run."""
    grpo = {
        "name": "grpo", "prompts_per_update": chosen.prompts,
        "rollouts_per_prompt": chosen.rollouts, "max_response_length": chosen.max_tokens,
    }  # fmt: skip
    return {
        "run": {"name": "run", "dir": str(folder), "cache": str(ROOT / "models")},
        "model": {"path": "smollm2-135m", "dtype": "bfloat16"},
        "engine": {
            "name": "vllm", "max_model_len": MAX_MODEL_LEN, "max_num_seqs": MAX_NUM_SEQS,
            "kv_cache_mb": KV_CACHE_MB,
        },
        "launch": {"processes": 1, "threads_per_process": len(os.sched_getaffinity(0))},
        "curate": [{
            "stage": "ingest", "name": "problems", "source": "reasoning_gym:gsm_symbolic",
            "size": 4 * chosen.prompts * chosen.updates,
        }],
        "train": {
            "updates": chosen.updates,
            "batch": {"max_tokens_per_microbatch": 2048},
            "optim": {"lr": 1e-12, "schedule": "constant", "warmup_fraction": 0.0},
            "checkpoint": {"portable": False},
        },
        "rollout": {"problems": "problems", "max_tokens": chosen.max_tokens},
        "variants": {
            name: {"method": grpo, "rollout": {"steps_ahead": ahead}}
            for name, ahead in AHEAD.items()
        },
    }  # fmt: skip


def train(scratch: Path, chosen: argparse.Namespace) -> Path:
    """Train both variants; the run's folder."""
    config = scratch / "run.yaml"
    config.write_text(
        yaml.safe_dump(settings(scratch / "runs", chosen), sort_keys=False), encoding="utf-8"
    )
    command = [sys.executable, "-m", "megatron_reason.cli.app", "run", str(config)]
    subprocess.run(command, check=True, cwd=ROOT)
    return scratch / "runs" / "run"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def batches(training: Path) -> list[list[dict[str, Any]]]:
    """Rollouts of each step of a training."""
    return [rows_of(path) for path in sorted(training.rglob("step_*.jsonl"))]


def time_line(name: str, training: Path) -> TimeLine:
    """What a training logged of its time."""
    (log,) = training.rglob("metrics.jsonl")
    steps = [row for row in rows_of(log) if "time/rollout" in row][1:]
    tokens = [sum(row["num_tokens"] for row in rows) for rows in batches(training)[1:]]
    assert len(tokens) == len(steps), "a file of rollouts for every step that was logged"
    seconds = {what: mean(row[f"time/{what}"] for row in steps) for what in MOMENTS}
    return TimeLine(name, len(steps), mean(tokens) / seconds["rollout"], mean(tokens), seconds)


def alone(scratch: Path, prompts: list[list[str]], peer: str, chosen: argparse.Namespace) -> float:
    """Tokens a second of vLLM alone, in a process of its own."""
    from megatron_reason.config.sampling import EngineConfig
    from megatron_reason.generation.vllm_arguments import engine_environment

    asked, found = scratch / "asked.json", scratch / "found.json"
    asked.write_text(json.dumps(prompts), encoding="utf-8")
    command = [sys.executable, __file__, "--rollouts", str(chosen.rollouts), "--max-tokens"]
    command += [str(chosen.max_tokens), "--asked", str(asked), "--found", str(found)]
    command += ["--peer", peer]
    environment = os.environ | engine_environment(EngineConfig())
    subprocess.run(command, check=True, env=environment | PEERS[peer])
    return float(json.loads(found.read_text(encoding="utf-8")))


def answer(chosen: argparse.Namespace) -> None:
    """In that process: answer one batch after the other and write tokens a second."""
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    from megatron_reason.models.sources import resolve_model

    folder, is_ids = resolve_model("smollm2-135m", ROOT / "models"), chosen.peer != "text"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    llm = LLM(
        str(folder), dtype="bfloat16", max_model_len=MAX_MODEL_LEN, max_num_seqs=MAX_NUM_SEQS,
        enforce_eager=True, kv_cache_memory_bytes=KV_CACHE_MB << 20, skip_tokenizer_init=is_ids,
    )  # fmt: skip
    sampling = SamplingParams(
        n=chosen.rollouts, temperature=1.0, max_tokens=chosen.max_tokens, detokenize=not is_ids,
        stop_token_ids=[tokenizer.eos_token_id],
    )  # fmt: skip
    tokens, seconds = 0, 0.0
    for number, texts in enumerate(json.loads(chosen.asked.read_text(encoding="utf-8"))):
        talks: Any = [[{"role": "user", "content": text}] for text in texts]
        prompts: Any = [
            {"prompt_token_ids": tokenizer.apply_chat_template(
                talk, add_generation_prompt=True, return_dict=False
            )}
            for talk in talks
        ]  # fmt: skip
        begun = time.perf_counter()
        if is_ids:
            answers = llm.generate(prompts, sampling, use_tqdm=False)
        else:
            answers = llm.chat(talks, sampling, use_tqdm=False)
        if number:
            seconds += time.perf_counter() - begun
            tokens += sum(len(one.token_ids) for each in answers for one in each.outputs)
    chosen.found.write_text(json.dumps(tokens / seconds), encoding="utf-8")


def page(about: str, lines: list[TimeLine], plain: dict[str, list[float]]) -> str:
    """The tables."""
    head = ["variant", *(f"{what} (s)" for what in MOMENTS), "trainer idle", "rollout tokens/s",
            *(f"of vLLM alone, {peer}" for peer in PEERS)]  # fmt: skip
    text = [
        f"# One step of GRPO\n\n{about}\n",
        f"| {' | '.join(head)} |",
        "| --- " * len(head) + "|",
    ]
    for line in lines:
        cells = [
            line.name, *(f"{line.seconds[what]:.2f}" for what in MOMENTS), f"{line.idle:.0%}",
            f"{line.tokens_per_s:.0f}",
            *(f"{line.tokens_per_s / mean(plain[peer]):.0%}" for peer in PEERS),
        ]  # fmt: skip
        text.append(f"| {' | '.join(cells)} |")
    measured = "; ".join(
        f"{peer} {' and '.join(f'{one:.0f}' for one in plain[peer])}" for peer in PEERS
    )
    text.append(f"\nvLLM alone, twice each: {measured} tokens/s.")
    return "\n".join(text) + "\n"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--peer", choices=[*PEERS], default="text", help=argparse.SUPPRESS)
    parser.add_argument("--asked", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.asked:
        answer(chosen)
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        run = train(scratch, chosen)
        trainings = {variant: next(run.glob(f"*-train-{variant}")) for variant in AHEAD}
        asked = [
            list(dict.fromkeys(row["problem"] for row in rows))
            for rows in batches(trainings["together"])
        ]
        plain: dict[str, list[float]] = {peer: [] for peer in PEERS}
        for peer in [*PEERS] * 2:
            plain[peer].append(alone(scratch, asked, peer, chosen))
        lines = [time_line(variant, folder) for variant, folder in trainings.items()]
    about = (
        f"`python tools/bench/step.py --updates {chosen.updates} --prompts {chosen.prompts} "
        f"--rollouts {chosen.rollouts} --max-tokens {chosen.max_tokens}`, {date.today()}, "
        f"{len(os.sched_getaffinity(0))} CPU cores, SmolLM2-135M in bfloat16, means of "
        f"{lines[0].steps} steps of {lines[0].tokens:.0f} generated tokens."
    )
    text = page(about, lines, plain)
    print(text)
    results = ROOT / "tools" / "bench" / "results"
    (results / "step.md").write_text(text, encoding="utf-8")
    content = {"about": about, "alone": plain, "steps": [asdict(line) for line in lines]}
    (results / "step.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
