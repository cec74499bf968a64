"""Takes the file and the settings of docs/add_a_method.md as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from megatron_reason.config.template import TemplateConfig
from megatron_reason.generation.templates import load_template
from megatron_reason.schema.batch import Role
from megatron_reason.schema.tables import Kind, write_table
from tests.distributed import spawn
from tests.engine import invariance

ROOT = Path(__file__).resolve().parents[1]


def block(language: str) -> str:
    """The first code block in this language."""
    page = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")
    found = re.search(rf"```{language}\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found.group(1)


def mreason(folder: Path, *words: str) -> str:
    """What a command prints with `folder` on PYTHONPATH, run from the repository's root."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "COLUMNS": "160"}
    done = subprocess.run(
        [sys.executable, "-m", "megatron_reason.cli.app", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def save_tokenizer(folder: Path) -> None:
    """As many words as the tiny model has rows, and the end of turn that the templates need."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [f"w{index}" for index in range(invariance.VOCAB - len(special))] + special
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="w0")), unk_token="w0",
        additional_special_tokens=special,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)


def test_the_guide(tmp_path: Path) -> None:
    (tmp_path / "focal.py").write_text(block("python"), encoding="utf-8")
    yaml = block("yaml").replace("examples/", f"{ROOT}/examples/")
    (tmp_path / "focal.yaml").write_text(yaml, encoding="utf-8")
    assert "mreason plan focal.yaml\nmreason run focal.yaml\n" in block("bash")
    assert "train-focal" in mreason(tmp_path, "plan", str(tmp_path / "focal.yaml"))
    # What `run` would do for this variant, on a model and a table that take seconds.
    model = invariance.make_model(tmp_path / "model", tied=True)
    save_tokenizer(model)
    template = load_template(TemplateConfig(name="oxa"), model)
    rows = [
        {"sample_id": s.sample_id, "role": str(Role.DEMO), "ids": list(s.ids),
         "num_prompt_tokens": s.num_prompt_tokens, "template_hash": template.hash}
        for s in invariance.samples()
    ]  # fmt: skip
    write_table(tmp_path / "table", Kind.TOKENS, pl.DataFrame(rows))
    mreason(
        tmp_path, "train", str(tmp_path / "focal.yaml"), "--variant", "focal",
        "--table", str(tmp_path / "table"), "--out", str(tmp_path / "out"),
        "--set", f"model.path={model}", "--set", "template.name=oxa",
        "--set", "train.updates=2", "--set", "launch.processes=1",
    )  # fmt: skip
    metrics = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8")
    assert metrics.count('"train/focal"') == 2
    assert (tmp_path / "out" / "huggingface" / "model.safetensors").is_file()


def compare_with_likelihood(rank: int, world_size: int, folder: str) -> None:
    sys.path.insert(0, folder)
    import focal
    import torch

    from megatron_reason.schema.method import create_method
    from tests import fixture_f
    from tests.loss import run

    batch = fixture_f.batch((Role.DEMO,) * 4)
    _, gradient, _ = run(focal.Focal(focal.FocalConfig()), batch)
    _, plain, _ = run(create_method("sft", mean="token_mean"), batch)
    weight_T = (1 - fixture_f.LOGPROB.exp()) ** 2
    torch.testing.assert_close(gradient, weight_T[:, None] * plain, atol=1e-9, rtol=0)


def test_the_gradient_of_the_example_is_the_weight_times_that_of_likelihood(tmp_path: Path) -> None:
    """In a process of its own: a plug-in stays registered for as long as its process lives."""
    (tmp_path / "focal.py").write_text(block("python"), encoding="utf-8")
    spawn(compare_with_likelihood, 1, str(tmp_path), megatron=False)
