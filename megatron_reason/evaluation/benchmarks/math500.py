"""MATH-500: the 500 test problems of MATH chosen by Lightman et al. 2023 (arXiv 2305.20050)."""

from megatron_reason.evaluation.base import Benchmark, benchmark

MATH500 = benchmark(Benchmark(name="math500", source="math500.jsonl", count=(500,)))
