import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import ConversionError
from tests.distributed import spawn
from tests.models import tiny


def refuses_what_does_not_fit(rank: int, world_size: int, root: str) -> None:
    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology

    topology = init_topology(ParallelConfig())

    def load(folder: Path) -> None:
        load_model(ModelConfig(path="x"), folder, ParallelConfig(), topology)

    folder = tiny.make("Qwen2ForCausalLM-untied", Path(root) / "model")
    weights = load_file(folder / "model.safetensors")
    file, meta = folder / "model.safetensors", {"format": "pt"}

    save_file({**weights, "model.extra.weight": torch.zeros(1)}, file, metadata=meta)
    with pytest.raises(ConversionError, match=r"1 tensors have no place.*model\.extra\.weight"):
        load(folder)
    less = {n: t for n, t in weights.items() if n != "model.layers.2.mlp.up_proj.weight"}
    save_file(less, file, metadata=meta)
    with pytest.raises(ConversionError, match=r"no tensor 'model\.layers\.2\.mlp\.up_proj"):
        load(folder)
    save_file({**weights, "model.norm.weight": torch.ones(31)}, file, metadata=meta)
    with pytest.raises(ConversionError, match=r"shape \(31,\).*expects \(32,\)"):
        load(folder)
    save_file(weights, file, metadata=meta)
    load(folder)
    tied = tiny.make("Qwen2ForCausalLM-tied", Path(root) / "tied")
    weights = load_file(tied / "model.safetensors")
    head = {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file({**weights, **head, **frequencies}, tied / "model.safetensors", metadata=meta)
    load(tied)
    head["lm_head.weight"][-1, -1] += 1
    save_file({**weights, **head}, tied / "model.safetensors", metadata=meta)
    with pytest.raises(ConversionError, match=r"stores two different.*\n.*tie_word_embeddings"):
        load(tied)

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "logit_scale": 2.0}))
    with pytest.raises(ConversionError, match="nothing reads the fields logit_scale"):
        load(folder)
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": ["Qwen2ForCausalML"]})
    )
    with pytest.raises(ValueError, match="Did you mean 'Qwen2ForCausalLM'"):
        load(folder)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    spawn(refuses_what_does_not_fit, 1, str(tmp_path))
