"""GSM8K: word problems with worked solutions, the answer behind `####`.

Source: openai/gsm8k, main, train. Calculator marks (`<<...>>`) are left in; LESE uses about 2,000
rows in its curriculum, with its own tags around the solution.
"""

from megatron_reason.curation._readers import read_gsm8k
from megatron_reason.curation.datasets.base import Dataset, dataset

dataset(
    Dataset(
        name="gsm8k",
        hub="hf://datasets/openai/gsm8k/main/train-*.parquet",
        columns=("question", "answer"),
        read=read_gsm8k,
    )
)
