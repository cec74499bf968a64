import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from megatron_reason.config.template import TemplateConfig
from megatron_reason.config.train import BatchConfig, OptimConfig, TrainConfig
from megatron_reason.generation.templates import load_template
from megatron_reason.models.sources import resolve_model
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import METHODS, build_method
from megatron_reason.schema.records import Message
from megatron_reason.schema.topology import Topology
from megatron_reason.training.data import TrainingSet
from megatron_reason.training.preview import describe_sample, look_ahead, rate_line


@pytest.fixture(scope="module")
def template():
    return load_template(TemplateConfig(), resolve_model("smollm2-135m", Path("models")))


def lognormal_set(num_rows: int) -> TrainingSet:
    """Lengths from 100 to 8000 about 700, as reasoning chains have."""
    draws = np.random.default_rng(1).lognormal(np.log(700), 0.8, num_rows)
    rows = [
        {"sample_id": str(i), "role": "demo", "ids": [1] * int(min(max(n, 100), 8000)),
         "num_prompt_tokens": 20, "template_hash": "x"}
        for i, n in enumerate(draws)
    ]  # fmt: skip
    frame = pl.DataFrame(rows).with_row_index("row")
    return TrainingSet(frame, {Role.DEMO: list(range(num_rows))})


def train_config(**changes: Any) -> TrainConfig:
    return TrainConfig(
        updates=100, batch=BatchConfig(max_tokens_per_microbatch=16384),
        optim=OptimConfig(lr=1e-4, warmup_fraction=0.1), **changes,
    )  # fmt: skip


def test_a_sample_is_shown_with_what_is_supervised(template: Any) -> None:
    prompt = template.prompt_ids([Message("user", "What is 6 x 7?")])
    ids = (*prompt, *template.response_ids("It is 42."))
    sample = TokenizedSample("gsm/1", Role.DEMO, ids, len(prompt))
    title, context, supervised = describe_sample(sample, template, coloured=False).splitlines()
    assert title == (
        f"demo gsm/1: {len(ids) - len(prompt)} of {len(ids) - 1} positions supervised; "
        "ends with <|im_end|>, which stops generation"
    )
    assert context.endswith("What is 6 x 7?<|im_end|>\\n<|im_start|>assistant\\n")
    assert supervised == "  supervised | It is 42.<|im_end|>\\n"
    coloured = describe_sample(sample, template, coloured=True)
    assert "\x1b[32mIt is 42.<|im_end|>\\n\x1b[0m" in coloured
    cut = dataclasses.replace(sample, ids=ids[:-3])
    assert "does not stop generation" in describe_sample(cut, template, coloured=False)


@pytest.mark.parametrize("dp_size", [1, 4])
def test_padding_and_waiting_stay_below_three_per_cent_on_a_lognormal_mix(dp_size: int) -> None:
    method = build_method(METHODS.get("sft").config_class(demos_per_update=128))
    topology = Topology(world_size=2 * dp_size, dp_size=dp_size, tp_size=2)
    data = lognormal_set(2000)
    outlook = look_ahead(method, data, train_config(), topology, total=100, seed=0)
    assert outlook.samples_per_update == 128
    assert outlook.padding < 0.03
    assert outlook.waiting < 0.03
    mean = data.frame["ids"].list.len().mean()
    assert outlook.tokens_per_update == pytest.approx(128 * mean, rel=0.1)
    per_update = outlook.microbatches_per_rank * dp_size * outlook.tokens_per_microbatch
    assert per_update == pytest.approx(outlook.tokens_per_update)


def test_the_rate_is_told_where_it_turns() -> None:
    assert rate_line(train_config(), 100) == (
        "learning rate, cosine: first (update 1) 1e-05, peak (update 10) 0.0001, "
        "middle (update 51) 5.87e-05, last (update 100) 3.05e-08"
    )
