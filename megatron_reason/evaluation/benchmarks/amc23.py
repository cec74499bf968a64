"""AMC 12 of 2023, the 40 problems of the Qwen2.5-Math harness.

Not the 83 problems that SRFT and LUFFY call AMC (`amc83.py`).
"""

from megatron_reason.evaluation.base import Benchmark, benchmark

AMC23 = benchmark(Benchmark(name="amc23", source="amc23.jsonl", count=(40,)))
