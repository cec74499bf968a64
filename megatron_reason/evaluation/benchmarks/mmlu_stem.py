"""MMLU, its STEM subjects: 3018 questions of four options (arXiv 2009.03300).

12 questions of the official test split occur twice.
"""

from megatron_reason.evaluation.base import Benchmark, benchmark

MMLU_STEM = benchmark(
    Benchmark(name="mmlu_stem", source="mmlu_stem.jsonl", count=(3018,), is_choice=True, repeats=12)
)
