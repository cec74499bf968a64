"""Tokens per second of `score` against the padded Hugging Face loop that OXA's authors used.

    python tools/bench/score.py --problems 40 --rounds 3 --spread 0.5 1.0

Same model (SmolLM2-135M), same texts, same machine, interleaved rounds in one run. The peer is
written after its description: one problem at a time, up to 8 of its responses padded to the
longest, tokenised twice, bfloat16 autocast, the whole [B, L, V] logits, a contiguous copy of them,
cross-entropy outside autocast, garbage collected after each problem; it runs as a script does. Ours
is the stage's own function, `engine.prepass.score_sequences`, data parallel over one process per
core, packed, bfloat16 logits and float32 statistics; it runs as `launch/local.py` starts workers,
huge pages included. Beside it, on the same ranks, the forward pass alone: the same micro-batches,
packed beforehand, hidden states times the head's weights, and nothing else. Model loading is left
out on all sides. Lengths are lognormal; what the peer loses grows with their spread, the standard
deviation of the logarithm: 1.8 positions a token at 0.5, 2.6 at 1.0. Writes a JSON file to
`tools/bench/results/`.
"""

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from megatron_reason.launch.local import WORKER_ENVIRONMENT  # noqa: E402

if TYPE_CHECKING:
    from torch import nn

    from megatron_reason.schema.batch import PackedBatch

RESPONSES_PER_BATCH = 8


@dataclass(frozen=True)
class Round:
    """One pass of one implementation over all texts."""

    name: str
    seconds: float
    tokens_per_s: float
    padded_over_real: float = 1.0


def texts(num_problems: int, spread: float) -> list[list[str]]:
    """Worked solutions of gsm_symbolic strung together, eight texts per problem.

    Lengths within a problem are lognormal about 180 words, as those of reasoning chains are;
    `spread` is the standard deviation of their logarithm.
    """
    import random

    from reasoning_gym import create_dataset

    draw = random.Random(7)
    words = [
        word
        for row in create_dataset("gsm_symbolic", size=num_problems * 40, seed=7)
        for word in row["metadata"]["answer_cot"].split(" ")
    ]
    groups: list[list[str]] = []
    for _ in range(num_problems):
        lengths = [
            min(max(round(draw.lognormvariate(math.log(180), spread)), 20), 900)
            for _ in range(RESPONSES_PER_BATCH)
        ]
        begins = [draw.randrange(len(words) - length) for length in lengths]
        groups.append([" ".join(words[i : i + n]) for i, n in zip(begins, lengths, strict=True)])
    return groups


def hugging_face(folder: Path, groups: list[list[str]], rounds: int) -> list[Round]:
    """The padded loop, with all cores as threads of one process."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "right"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    results: list[Round] = []
    for _ in range(rounds):
        started, tokens, padded = time.perf_counter(), 0, 0
        for group in groups:
            lengths = [len(ids) for ids in tokenizer(group)["input_ids"]]
            encoded = tokenizer(group, return_tensors="pt", padding=True)
            mask = encoded["attention_mask"]
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(**encoded).logits
            shifted = logits[:, :-1].contiguous()
            labels = encoded["input_ids"][:, 1:].contiguous()
            nll = torch.nn.functional.cross_entropy(
                shifted.view(-1, shifted.shape[-1]), labels.view(-1), reduction="none"
            ).view_as(labels)
            (nll * mask[:, 1:]).sum(dim=1).div(mask[:, 1:].sum(dim=1)).exp().tolist()
            tokens += sum(lengths) - len(lengths)
            padded += mask[:, 1:].numel()
            del logits, shifted
            gc.collect()
        seconds = time.perf_counter() - started
        rate = tokens / seconds
        results.append(Round("hugging face, padded", seconds, rate, padded / tokens))
    return results


def ours(folder: Path, groups: list[list[str]], rounds: int) -> list[Round]:
    """Our scoring function on this rank, then the forward pass alone; only rank 0 counts."""
    from torch import distributed as dist

    from megatron_reason import platform

    with platform.cpu():
        from transformers import AutoTokenizer

        from megatron_reason.config.model import ModelConfig
        from megatron_reason.config.parallel import ParallelConfig
        from megatron_reason.config.train import BatchConfig
        from megatron_reason.engine.packing import assign, pack
        from megatron_reason.engine.prepass import score_sequences
        from megatron_reason.engine.startup import load_model, parallel_world
        from megatron_reason.schema.batch import Role, TokenizedSample

        tokenizer = AutoTokenizer.from_pretrained(folder)
        results: list[Round] = []
        with parallel_world(ParallelConfig(), seed=1) as topology:
            stage = load_model(ModelConfig(path="bench"), folder, ParallelConfig(), topology)
            for _ in range(rounds):
                started = time.perf_counter()
                samples = [
                    TokenizedSample(str(i), Role.DEMO, tuple(tokenizer(text)["input_ids"]), 1)
                    for i, text in enumerate(text for group in groups for text in group)
                ]
                batch = BatchConfig(max_tokens_per_microbatch=2048)
                scores = score_sequences(stage, samples, batch, topology)
                seconds = time.perf_counter() - started
                tokens = sum(score.num_tokens for score in scores)
                results.append(Round("megatron_reason, packed", seconds, tokens / seconds))
                lengths = [sample.num_positions for sample in samples]
                shares = assign(lengths, batch, topology.dp_size)[topology.dp_rank]
                packed = [pack([samples[i] for i in share]) for share in shares]
                dist.barrier()
                started = time.perf_counter()
                forward_alone(stage, packed)
                dist.barrier()
                seconds = time.perf_counter() - started
                results.append(Round("forward pass alone", seconds, tokens / seconds))
    return results


def forward_alone(stage: "nn.Module", batches: "list[PackedBatch]") -> None:
    """Logits of every position, thrown away."""
    import torch

    from megatron_reason.models.build import head_weight
    from megatron_reason.models.packed import pack_of

    with torch.no_grad():
        for batch in batches:
            packed = pack_of(batch.cu_seqlens, batch.max_seqlen)
            hidden = stage(
                input_ids=batch.ids_T[None], position_ids=batch.position_T[None],
                attention_mask=None, packed_seq_params=packed,
            )  # fmt: skip
            torch.matmul(hidden[:, 0], head_weight(stage).T)


def launch(side: str, arguments: argparse.Namespace, spread: float, output: Path) -> list[Round]:
    """Run one side in processes of its own, on all cores."""
    cores = len(os.sched_getaffinity(0))
    inner = [
        str(Path(__file__)), "--side", side, "--problems", str(arguments.problems), "--rounds",
        "1", "--model", str(arguments.model), "--output", str(output),
        "--spread", str(spread),
    ]  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(cores)]
    command = [sys.executable, *(launcher if side == "ours" else []), *inner]
    threads = "1" if side == "ours" else str(cores)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
    if side == "ours":
        environment |= WORKER_ENVIRONMENT
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return [Round(**found) for found in json.loads(output.read_text())]


def main() -> None:
    """Run both sides in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spread", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--side", choices=["ours", "hugging_face"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.side:
        side = ours if arguments.side == "ours" else hugging_face
        results = side(arguments.model, texts(arguments.problems, arguments.spread[0]), 1)
        if os.environ.get("RANK", "0") == "0":
            arguments.output.write_text(json.dumps([asdict(result) for result in results]))
        return
    if arguments.model is None:
        from megatron_reason.models.sources import resolve_model

        arguments.model = resolve_model("smollm2-135m", ROOT / "models")
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "out.json"
        pairs = {
            spread: [
                [
                    *launch("hugging_face", arguments, spread, output),
                    *launch("ours", arguments, spread, output),
                ]
                for _ in range(arguments.rounds)
            ]
            for spread in arguments.spread
        }
    report(pairs, arguments.problems)


def report(pairs: dict[float, list[list[Round]]], problems: int) -> None:
    """Print and store the rates of every round and the median ratio at each spread."""
    print("| spread | padded / real | hugging face, padded (tokens/s) | ours, packed | ratio "
          "| forward pass alone | share of it |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    medians: dict[float, float] = {}
    shares: dict[float, float] = {}
    for spread, rounds in pairs.items():
        medians[spread] = median(own.tokens_per_s / peer.tokens_per_s for peer, own, _ in rounds)
        shares[spread] = median(own.tokens_per_s / most.tokens_per_s for _, own, most in rounds)
        for peer, own, most in rounds:
            ratio, share = (own.tokens_per_s / other.tokens_per_s for other in (peer, most))
            print(
                f"| {spread} | {peer.padded_over_real:.2f} | {peer.tokens_per_s:.0f} | "
                f"{own.tokens_per_s:.0f} | {ratio:.2f} | {most.tokens_per_s:.0f} | {share:.0%} |"
            )
    for spread, ratio in medians.items():
        print(f"\nmedians at spread {spread}: {ratio:.2f} times the peer, {shares[spread]:.0%} of "
              "the forward pass alone")  # fmt: skip
    results = ROOT / "tools" / "bench" / "results"
    results.mkdir(exist_ok=True)
    record = {
        "date": date.today().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "problems": problems,
        "median_ratio": medians,
        "median_share_of_forward": shares,
        "rounds": {
            spread: [[asdict(side) for side in pair] for pair in rounds]
            for spread, rounds in pairs.items()
        },
    }
    (results / "score.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
