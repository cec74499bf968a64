"""GSM8K, test split: grade-school word problems with numeric answers (arXiv 2110.14168).

1319 problems, or the 1119 of copies that withhold 200.
"""

from megatron_reason.evaluation.base import Benchmark, benchmark

GSM8K = benchmark(
    Benchmark(name="gsm8k", source="gsm8k_test.jsonl", count=(1319, 1119), reward="numeric")
)
