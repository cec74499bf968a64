"""CMIMC 2025, the Carnegie Mellon Informatics and Mathematics Competition: 40 problems."""

from megatron_reason.evaluation.base import Benchmark, benchmark

CMIMC25 = benchmark(Benchmark(name="cmimc25", source="cmimc25.jsonl", count=(40,)))
