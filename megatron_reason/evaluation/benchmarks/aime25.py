"""AIME 2025, I and II: 30 problems with integer answers from 0 to 999."""

from megatron_reason.evaluation.base import Benchmark, benchmark

AIME25 = benchmark(Benchmark(name="aime25", source="aime25.jsonl", count=(30,)))
