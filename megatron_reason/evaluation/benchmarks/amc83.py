"""AMC 12 of 2022 and 2023, the 83 problems that SRFT and LUFFY call AMC.

Not the 40 problems of the Qwen2.5-Math harness (`amc23.py`).
"""

from megatron_reason.evaluation.base import Benchmark, benchmark

AMC83 = benchmark(Benchmark(name="amc83", source="amc83.jsonl", count=(83,)))
