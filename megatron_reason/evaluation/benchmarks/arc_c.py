"""ARC Challenge, test split: 1172 science questions of three to five options (arXiv 1803.05457)."""

from megatron_reason.evaluation.base import Benchmark, benchmark

ARC_C = benchmark(Benchmark(name="arc_c", source="arc_c.jsonl", count=(1172,), is_choice=True))
