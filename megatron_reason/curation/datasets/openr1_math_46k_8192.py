"""OpenR1-Math-46k-8192: DeepSeek-R1 traces of at most 8192 tokens, verified; rows as verl has them.

Source: Elliott/Openr1-Math-46k-8192, used by LUFFY, SRFT, ReLIFT and HPT. The prompt holds their
system message; `target` is one trace that begins with `<think>`. A model
whose chat template puts a system message of its own leaves it out where the row has one.
"""

from megatron_reason.curation._readers import read_verl
from megatron_reason.curation.datasets.base import Dataset, dataset

dataset(
    Dataset(
        name="openr1_math_46k_8192",
        hub="hf://datasets/Elliott/Openr1-Math-46k-8192/**",
        columns=("prompt", "target", "reward_model"),
        read=read_verl,
    )
)
