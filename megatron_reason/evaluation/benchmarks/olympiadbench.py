"""OlympiadBench, English text-only problems with a final answer (arXiv 2402.14008).

675 problems in the Qwen2.5-Math harness and in LUFFY's file; SRFT counts 674.
"""

from megatron_reason.evaluation.base import Benchmark, benchmark

OLYMPIADBENCH = benchmark(
    Benchmark(name="olympiadbench", source="olympiadbench.jsonl", count=(675, 674))
)
