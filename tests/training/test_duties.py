import json
from pathlib import Path

import pytest

from megatron_reason.config.template import TemplateConfig
from megatron_reason.config.train import (
    BatchConfig,
    CheckpointConfig,
    KeepConfig,
    OptimConfig,
    TrainConfig,
)
from megatron_reason.generation.templates import load_template
from megatron_reason.schema.records import Finish
from megatron_reason.training.duties import _tokenized
from tests.training.tiny_run import launch, losses, run, write_job
from tools.make_tiny_model import make_tiny_model


@pytest.mark.parametrize("finish", [Finish.STOP, Finish.LENGTH])
def test_entropy_is_measured_on_the_tokens_that_were_generated(tmp_path: Path, finish: Finish):
    model = make_tiny_model("LlamaForCausalLM", tmp_path / "tiny")
    template = load_template(TemplateConfig(name="qwen_no_system"), model)
    row = {"problem_id": "p", "sample_index": "0", "response": "It is 2.", "finish": finish}
    sample = _tokenized(row, [{"role": "user", "content": "1+1?"}], template)
    stop = template.tokenizer.convert_tokens_to_ids("<|im_end|>")
    drawn = [*template.tokenizer.encode("It is 2."), *([stop] if finish is Finish.STOP else [])]
    assert list(sample.ids[sample.num_prompt_tokens :]) == drawn


def test_a_backend_that_the_configuration_forces_is_the_one_that_is_asked(tmp_path: Path) -> None:
    file = write_job(tmp_path, tmp_path / "run")
    job = json.loads(file.read_text())
    job["model"]["token_stats"] = "triton"
    file.write_text(json.dumps(job))
    process = launch(file, tmp_path / "run")
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "PlatformError  token_stats backend 'triton'" in text


def test_the_best_checkpoint_is_exported_beside_the_last(tmp_path: Path) -> None:
    """Its weights are those of a run that ends there."""
    keep = KeepConfig(last=1, best="train/loss", best_is="highest")

    def settings(updates: int, keep: KeepConfig) -> TrainConfig:
        return TrainConfig(
            updates=updates,
            batch=BatchConfig(max_tokens_per_microbatch=48),
            optim=OptimConfig(lr=1e-2, schedule="constant", warmup_fraction=0),
            checkpoint=CheckpointConfig(every=2, keep=keep),
        )

    def weights(name: str, train: TrainConfig, folder: str = "huggingface") -> bytes:
        output = tmp_path / name
        if not (output / folder).is_dir():
            run(write_job(tmp_path, output, train=train))
        return (output / folder / "model.safetensors").read_bytes()

    whole = settings(6, keep)
    last, best = weights("whole", whole), weights("whole", whole, "huggingface_best")
    assert last != best
    by_step = [loss for _, loss, _ in losses(tmp_path / "whole")]
    means = [sum(by_step[at : at + 2]) for at in (0, 2, 4)]
    end = 2 * (means.index(max(means)) + 1)
    assert end < 6, "the last is not the best, or this shows nothing"
    assert weights("short", settings(end, KeepConfig(last=1))) == best
