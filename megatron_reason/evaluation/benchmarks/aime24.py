"""AIME 2024, I and II: 30 problems with integer answers from 0 to 999."""

from megatron_reason.evaluation.base import Benchmark, benchmark

AIME24 = benchmark(Benchmark(name="aime24", source="aime24.jsonl", count=(30,)))
