"""GPQA Diamond: 198 graduate-level questions of four options (arXiv 2311.12022)."""

from megatron_reason.evaluation.base import Benchmark, benchmark

GPQA_DIAMOND = benchmark(
    Benchmark(name="gpqa_diamond", source="gpqa_diamond.jsonl", count=(198,), is_choice=True)
)
