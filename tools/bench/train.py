"""Tokens per second of supervised fine-tuning against trl and against a plain PyTorch loop.

    python tools/bench/train.py --updates 4

Same model (SmolLM2-135M), same texts, same machine, interleaved rounds in one run; float32 main
weights and bfloat16 arithmetic everywhere, AdamW, gradients clipped, no recomputation. The plain
loop pads each batch of 8 to its longest text and uses all cores as threads; trl's SFTTrainer packs
("bfd") to 2048 tokens and is timed by its own callback, if it is installed. Ours is
`engine.update.update` on one process per core, and on one process for the scaling. The first update
of each is a warm-up. Writes a table and a JSON file to `tools/bench/results/`.
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
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from megatron_reason.launch.local import WORKER_ENVIRONMENT  # noqa: E402
from tools.bench.score import texts  # noqa: E402

PER_UPDATE = 16
PER_BATCH = 8
PACKED_TOKENS = 2048
LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Rate:
    """Real tokens per second of one implementation, warm-up left out."""

    name: str
    tokens_per_s: float


def sequences(folder: Path, updates: int) -> list[list[int]]:
    """Token ids, PER_UPDATE for each update."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    groups = texts(updates * PER_UPDATE // 8, spread=0.5)
    return [tokenizer(text)["input_ids"] for group in groups for text in group]


def plain(folder: Path, updates: int) -> float:
    """A loop as one writes it by hand."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    rows = sequences(folder, updates)
    seconds, tokens = 0.0, 0
    for update in range(updates):
        started = time.perf_counter()
        chosen = rows[update * PER_UPDATE : (update + 1) * PER_UPDATE]
        total = sum(len(row) - 1 for row in chosen)
        for begin in range(0, PER_UPDATE, PER_BATCH):
            batch = chosen[begin : begin + PER_BATCH]
            longest = max(map(len, batch))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(input_ids=ids, attention_mask=mask).logits
            labels = ids.masked_fill(mask == 0, -100)[:, 1:]
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), labels.flatten(), reduction="sum"
            )
            (loss / total).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if update:
            seconds, tokens = seconds + time.perf_counter() - started, tokens + total
    return tokens / seconds


def with_trl(folder: Path, updates: int) -> float:
    """The trainer of trl, packed; every row it takes holds PACKED_TOKENS tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    # Not among our dependencies, so that type checkers do not know them.
    trl, datasets = import_module("trl"), import_module("datasets")
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            marks.append(time.perf_counter())

    rows = sequences(folder, updates)
    per_update = sum(map(len, rows)) // updates
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trl.SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            args=trl.SFTConfig(
                output_dir=scratch, max_steps=updates, per_device_train_batch_size=1,
                gradient_accumulation_steps=max(round(per_update / PACKED_TOKENS), 1),
                packing=True, max_length=PACKED_TOKENS, bf16=True, use_cpu=True, report_to=[],
                save_strategy="no", gradient_checkpointing=False, learning_rate=LEARNING_RATE,
                logging_strategy="no",
            ),
            train_dataset=datasets.Dataset.from_dict({"input_ids": rows}),
            processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=[Clock()],
        )  # fmt: skip
        lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
        trainer.train()
    steps = len(marks) - 1
    per_step = trainer.args.gradient_accumulation_steps * sum(lengths) / len(lengths)
    return steps * per_step / (marks[-1] - marks[0])


def ours(folder: Path, updates: int) -> float:
    """The engine's update on this rank; every rank returns the same rate."""
    from megatron_reason import platform

    with platform.cpu():
        from megatron_reason.config.model import ModelConfig
        from megatron_reason.config.parallel import ParallelConfig
        from megatron_reason.config.train import BatchConfig, OptimConfig, TrainConfig
        from megatron_reason.engine.guards import NonFiniteGuard
        from megatron_reason.engine.startup import load_model, make_trainable, parallel_world
        from megatron_reason.engine.update import update
        from megatron_reason.schema.batch import Role, TokenizedSample
        from megatron_reason.schema.method import TrainState, create_method

        method = create_method("sft", demos_per_update=PER_UPDATE, mean="token_mean")
        train = TrainConfig(
            updates=updates,
            batch=BatchConfig(max_tokens_per_microbatch=PACKED_TOKENS),
            optim=OptimConfig(lr=LEARNING_RATE),
        )
        rows = sequences(folder, updates)
        with (
            parallel_world(ParallelConfig(), seed=1) as topology,
            tempfile.TemporaryDirectory() as d,
        ):
            stage = load_model(ModelConfig(path="bench"), folder, ParallelConfig(), topology)
            trainable = make_trainable(stage, train.optim, topology)
            guard = NonFiniteGuard(Path(d), 0)
            seconds, tokens = 0.0, 0
            for index in range(updates):
                chosen = rows[index * PER_UPDATE : (index + 1) * PER_UPDATE]
                samples = [
                    TokenizedSample(str(i), Role.DEMO, tuple(row), 1)
                    for i, row in enumerate(chosen)
                ]
                started = time.perf_counter()
                state = TrainState(index, updates)
                update(trainable, method, samples, state, train, guard)
                if index:
                    seconds += time.perf_counter() - started
                    tokens += sum(len(row) - 1 for row in chosen)
    return tokens / seconds


SIDES = {"plain": plain, "trl": with_trl, "ours": ours}


def measure(side: str, arguments: argparse.Namespace, processes: int, output: Path) -> Rate:
    """Run one side in processes of its own."""
    inner = [
        str(Path(__file__)), "--side", side, "--updates", str(arguments.updates), "--model",
        str(arguments.model), "--output", str(output),
    ]  # fmt: skip
    is_ours = side == "ours"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    threads = "1" if is_ours else str(len(os.sched_getaffinity(0)))
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": paths}
    command = [sys.executable, *(launcher if is_ours else []), *inner]
    environment |= WORKER_ENVIRONMENT if is_ours else {}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    name = f"megatron_reason, {processes} processes" if is_ours else side
    return Rate(name, json.loads(output.read_text()))


def main() -> None:
    """Run all sides in turn and print their rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--side", choices=[*SIDES])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        rate = SIDES[arguments.side](arguments.model, arguments.updates)
        if os.environ.get("RANK", "0") == "0":
            arguments.output.write_text(json.dumps(rate))
        return
    if arguments.model is None:
        from megatron_reason.models.sources import resolve_model

        arguments.model = resolve_model("smollm2-135m", ROOT / "models")
    cores = len(os.sched_getaffinity(0))
    plan = [("plain", 1), ("ours", cores), ("ours", 1)]
    if find_spec("trl"):
        plan.insert(1, ("trl", 1))
    rates: list[Rate] = []
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(arguments.rounds):
            for side, processes in plan:
                rates.append(measure(side, arguments, processes, Path(scratch) / "rate.json"))
                print(f"{rates[-1].name}: {rates[-1].tokens_per_s:.0f} tokens/s", flush=True)
    report(rates, cores)


def report(rates: list[Rate], cores: int) -> None:
    """Print and store the median rate of each side, and ours over it."""
    names = list(dict.fromkeys(rate.name for rate in rates))
    medians = {n: median(r.tokens_per_s for r in rates if r.name == n) for n in names}
    own = medians[f"megatron_reason, {cores} processes"]
    lines = [
        "| implementation | tokens/s | ours over it |", "|---|---|---|",
        *(f"| {name} | {rate:.0f} | {own / rate:.2f} |" for name, rate in medians.items()),
    ]  # fmt: skip
    print("", *lines, sep="\n")
    results = ROOT / "tools" / "bench" / "results"
    (results / "train.md").write_text("\n".join([*lines, ""]))
    result = {"date": str(date.today()), "cores": cores, "rates": [asdict(r) for r in rates]}
    (results / "train.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
