from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.errors import GenerationError
from megatron_reason.generation.hf_engine import HFEngine
from megatron_reason.training.actor import Actor
from tools.make_tiny_model import make_tiny_model


@pytest.mark.parametrize("sleeps", [True, False])
def test_the_engine_rests_only_where_it_was_asked_to(tmp_path: Path, sleeps: bool) -> None:
    model = make_tiny_model("Qwen2ForCausalLM", tmp_path, num_hidden_layers=1)
    config = EngineConfig(name="transformers", max_model_len=16, sleep_mode=sleeps)
    engine = HFEngine(model, config, dtype="float32")
    actor = Actor(cast(Any, None), engine, None, ThreadPoolExecutor(1), sleeps=sleeps)
    sampling = SamplingConfig(max_tokens=2)
    first = engine.generate([[1, 2]], sampling)
    actor.rest()
    assert engine.is_asleep == sleeps
    if sleeps:
        with pytest.raises(GenerationError, match="sleeps"):
            engine.generate([[1, 2]], sampling)
    actor.rouse()
    assert not engine.is_asleep
    assert engine.generate([[1, 2]], sampling) == first
