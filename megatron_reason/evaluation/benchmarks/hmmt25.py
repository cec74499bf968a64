"""HMMT February 2025, the Harvard-MIT Mathematics Tournament: 30 problems."""

from megatron_reason.evaluation.base import Benchmark, benchmark

HMMT25 = benchmark(Benchmark(name="hmmt25", source="hmmt25.jsonl", count=(30,)))
