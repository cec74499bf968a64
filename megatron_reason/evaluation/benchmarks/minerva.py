"""Minerva: 272 problems of undergraduate science courses (OCWCourses, arXiv 2206.14858)."""

from megatron_reason.evaluation.base import Benchmark, benchmark

MINERVA = benchmark(Benchmark(name="minerva", source="minerva.jsonl", count=(272,)))
