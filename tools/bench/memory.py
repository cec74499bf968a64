"""Memory that training takes on a CPU against what `mreason plan` predicts, for six layouts.

    python tools/bench/memory.py

A model with random weights is trained for two updates under each layout. Measured is how much the
resident set of the largest rank grows, from before the model is built to its peak, with glibc told
to give freed memory back at once. Writes a table to `tools/bench/results/memory.md`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from megatron_reason.pipeline._sizes import sizes_of  # noqa: E402
from megatron_reason.pipeline.estimate import Extras, Layout, memory_of  # noqa: E402

TOKENS = 1024
SEQUENCE = 512
UPDATES = 2
LAYOUTS = {
    "alone": Layout(1, 1, 1, TOKENS),
    "alone, recompute full": Layout(1, 1, 1, TOKENS, "full"),
    "DP 2": Layout(1, 1, 2, TOKENS),
    "TP 2": Layout(2, 1, 1, TOKENS, sequence_parallel=True),
    "PP 2": Layout(1, 2, 1, TOKENS),
    "CP 2": Layout(1, 1, 1, TOKENS, cp=2),
}
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 8, "vocab_size": 32000,
    "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def resident(key: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def rank(folder: Path, layout: Layout, out: Path) -> None:
    """Train on this rank, and write its growth where it is the first."""
    from megatron_reason import platform

    with platform.cpu():
        from megatron_reason.config.model import ModelConfig
        from megatron_reason.config.parallel import ParallelConfig
        from megatron_reason.config.train import BatchConfig, OptimConfig, TrainConfig
        from megatron_reason.engine.guards import NonFiniteGuard
        from megatron_reason.engine.startup import make_trainable, parallel_world
        from megatron_reason.engine.update import update
        from megatron_reason.methods.sft import SFT, SFTConfig
        from megatron_reason.models.build import build_model
        from megatron_reason.schema.batch import Role, TokenizedSample
        from megatron_reason.schema.method import TrainState

        parallel = ParallelConfig(
            tensor_model_parallel_size=layout.tp,
            pipeline_model_parallel_size=layout.pp,
            context_parallel_size=layout.cp,
            sequence_parallel=layout.sequence_parallel,
            recompute=layout.recompute,
        )
        train = TrainConfig(
            updates=UPDATES, optim=OptimConfig(lr=1e-5), parallel=parallel,
            batch=BatchConfig(max_tokens_per_microbatch=TOKENS),
        )  # fmt: skip
        model = ModelConfig(path=str(folder), dtype="bfloat16")
        with parallel_world(parallel, seed=1) as topology:
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            stage = build_model(folder, model, parallel, topology)
            for parameter in stage.parameters():
                parameter.data.normal_(std=0.02)
            trainable = make_trainable(stage, train.optim, topology)
            count = 2 * TOKENS // SEQUENCE * layout.dp
            samples = [
                TokenizedSample(
                    f"s{i}", Role.DEMO, tuple((i * 7 + k) % 31000 for k in range(SEQUENCE + 1)), 1
                )
                for i in range(count)
            ]
            method = SFT(SFTConfig(demos_per_update=count))
            with tempfile.TemporaryDirectory() as crash:
                guard = NonFiniteGuard(Path(crash), 3, writes=False)
                for step in range(UPDATES):
                    update(trainable, method, samples, TrainState(step, UPDATES), train, guard)
            growth = resident("VmHWM") - before
        out.with_suffix(f".{os.environ.get('RANK', '0')}").write_text(str(growth))


def main() -> None:
    """Measure all layouts, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", nargs=3, metavar=("FOLDER", "LAYOUT", "OUT"))
    given = parser.parse_args()
    if given.rank:
        rank(Path(given.rank[0]), Layout(**json.loads(given.rank[1])), Path(given.rank[2]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        sizes = sizes_of(str(folder), folder)
        for name, layout in LAYOUTS.items():
            out = folder / "growth"
            subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                 str(layout.ranks), __file__, "--rank", str(folder),
                 json.dumps(asdict(layout)), str(out)],
                check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                     "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=262144"},
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            measured = max(int(path.read_text()) for path in folder.glob("growth.*"))
            for path in folder.glob("growth.*"):
                path.unlink()
            predicted = memory_of(sizes, layout, Extras())
            off = predicted.total / measured - 1
            rows.append(
                f"| {name} | {measured / 1e6:.0f} | {predicted.total / 1e6:.0f} | {off:+.1%} |"
            )
            sys.stdout.write(f"{rows[-1]}\n")
            sys.stdout.flush()
    weights = f"{sizes.parameters / 1e6:.0f} million weights"
    head = (
        f"Growth of the largest rank's memory on a CPU, MB: {weights}, {sizes.layers} layers, "
        f"micro-batches of {TOKENS} tokens, bfloat16.\nMade by tools/bench/memory.py.\n\n"
        "| layout | measured | predicted | off by |\n|---|---|---|---|\n"
    )
    out = ROOT / "tools" / "bench" / "results" / "memory.md"
    out.write_text(head + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
