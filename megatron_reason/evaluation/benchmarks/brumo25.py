"""BRUMO 2025, the Brown University Math Olympiad: 30 problems with short answers."""

from megatron_reason.evaluation.base import Benchmark, benchmark

BRUMO25 = benchmark(Benchmark(name="brumo25", source="brumo25.jsonl", count=(30,)))
