from pathlib import Path

import pytest

from megatron_reason.errors import ConfigError
from megatron_reason.pipeline._sizes import KNOWN, sizes_of

PUBLISHED = {
    "Qwen2.5-1.5B": 1.54e9, "Qwen2.5-7B": 7.62e9, "Qwen2.5-14B": 14.8e9, "Qwen2.5-32B": 32.8e9,
    "Qwen2.5-72B": 72.7e9, "Llama-3.2-1B": 1.24e9, "Llama-3.2-3B": 3.21e9, "Llama-3.1-8B": 8.03e9,
    "Llama-3.1-70B": 70.6e9, "Qwen3-1.7B": 1.72e9,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_weights_add_up_to_the_published_number(name):
    assert KNOWN[name].parameters == pytest.approx(PUBLISHED[name], rel=0.01)


def test_a_model_is_known_by_its_folder_or_its_name(smollm2):
    here = sizes_of(str(smollm2), Path("models"))
    assert (here.layers, here.kv_heads, here.tied) == (30, 3, True)
    assert here.parameters == pytest.approx(134.5e6, rel=1e-3)
    named = sizes_of("meta-llama/Llama-3.1-8B-Instruct", Path("nowhere"))
    assert named == KNOWN["Llama-3.1-8B"]
    with pytest.raises(ConfigError, match=r"Did you mean 'Qwen2\.5-7B'"):
        sizes_of("Qwen/Qwen2.5-7A", Path("nowhere"))
