"""MMLU-Pro, test split: 12032 questions of up to ten options (arXiv 2406.01574)."""

from megatron_reason.evaluation.base import Benchmark, benchmark

MMLU_PRO = benchmark(
    Benchmark(name="mmlu_pro", source="mmlu_pro.jsonl", count=(12032,), is_choice=True)
)
