"""Fixtures shared by all tests: the small real model, made once into a git-ignored folder."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from megatron_reason.generation.vllm_engine import VllmEngine

MODEL_CACHE = Path(__file__).parent.parent / "models"

# A machine that is busy makes no example too slow, and a run of the tests is like any other.
settings.register_profile("ours", deadline=None, derandomize=True)
settings.load_profile("ours")
# Servers of this machine are never asked by way of somebody's proxy.
for _name in ("NO_PROXY", "no_proxy"):
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1,localhost")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Jobs of the local SLURM first: one worker waits for them while the other does the rest."""
    items.sort(key=lambda item: "slurm" not in item.path.parts)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Hugging Face folder of SmolLM2-135M-Instruct in bfloat16."""
    from megatron_reason.models.sources import resolve_model

    return resolve_model("smollm2-135m", MODEL_CACHE)


@pytest.fixture(scope="session")
def vllm_engine(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[VllmEngine]":
    """One vLLM engine on SmolLM2 for the whole session.

    A test that loads other weights loads those of `smollm2` again before it ends.
    """
    from megatron_reason.config.sampling import EngineConfig
    from megatron_reason.generation.vllm_engine import VllmEngine

    config = EngineConfig(max_model_len=512, max_num_seqs=16, kv_cache_mb=128)
    with VllmEngine(
        smollm2, config, dtype="bfloat16", log_folder=tmp_path_factory.mktemp("vllm")
    ) as engine:
        yield engine
