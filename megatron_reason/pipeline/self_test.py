"""Everything a run needs, tried on a tiny random model: does it work on this machine?

Two ranks train it for some updates, every engine that is installed answers with what came of it,
and answers are graded. Not here: what is installed (`doctor.py`), and real models (`opinions.py`).
"""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, redirect_stderr
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

from megatron_reason import platform
from megatron_reason.config.launch import LaunchConfig
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.config.train import OptimConfig, TrainConfig
from megatron_reason.errors import GenerationError, ReasonError, RewardError
from megatron_reason.pipeline.doctor import Finding
from megatron_reason.pipeline.workers import run_on_ranks
from megatron_reason.schema.records import Status
from megatron_reason.schema.tables import Kind, write_table
from megatron_reason.tracking.jsonl import METRICS, read_metrics

EngineName = Literal["transformers", "vllm", "vllm-server"]
_REPAIR = "./scripts/quickstart.sh installs the locked set again"
_VOCABULARY = 512
_LENGTH, _PROMPT, _ANSWER = 24, 8, 8
_SEQUENCES, _UPDATES = 8, 4
_MOST_GAP = 0.05
"""Nats between two engines in bfloat16, on average over the tokens."""
_GRADED = {"So it is \\boxed{0.5}.": Status.OK, "So it is \\boxed{0.6}.": Status.WRONG}


def installed_engines() -> tuple[EngineName, ...]:
    """Engines that run on this machine."""
    return ("transformers", "vllm") if find_spec("vllm") is not None else ("transformers",)


def self_test(engines: Sequence[EngineName]) -> Iterator[Finding]:
    """Try training, each of `engines`, and grading; takes a minute on two cores.

    Logs and all else lie in a temporary folder, which stays if anything fails.

    Yields:
        What came of each, as soon as it is known; what did not work says what to type.
    """
    folder = Path(mkdtemp(prefix="mreason-self-test-"))
    is_well = True
    for finding in _findings(folder, engines):
        is_well = is_well and finding.verdict == "ok"
        yield finding
    if is_well:
        shutil.rmtree(folder)


def _findings(folder: Path, engines: Sequence[EngineName]) -> Iterator[Finding]:
    model = _make_model(folder / "model")
    try:
        yield from _trained(model, folder)
    except ReasonError as error:
        yield _failed("training", error)
    reference: list[float] = []
    for engine in engines:
        yield _tried(f"engine {engine}", partial(_answers, engine, model, folder, reference))
    yield _tried("grading", _grades)


def _tried(what: str, attempt: Callable[[], str]) -> Finding:
    """What `attempt` says of its success, or why there was none."""
    try:
        return Finding(what, attempt(), "ok")
    except (ReasonError, ImportError, RuntimeError) as error:
        return _failed(what, error)


def _failed(what: str, error: Exception) -> Finding:
    if isinstance(error, ReasonError):
        return Finding(what, error.what, "wrong", f"{error.way_out} Or {_REPAIR}.")
    return Finding(what, f"{type(error).__name__}: {error}", "wrong", f"{_REPAIR}.")


def _make_model(folder: Path) -> Path:
    """A random Llama without a tokenizer; its heads have a size that every engine knows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=_VOCABULARY, hidden_size=128, intermediate_size=256,
                num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                max_position_embeddings=256, tie_word_embeddings=True,
            )
        )  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def _sequences() -> list[list[int]]:
    """Token ids that no two sequences have in the same order."""
    return [
        [(7 * position + 31 * row + 5) % _VOCABULARY for position in range(_LENGTH)]
        for row in range(_SEQUENCES)
    ]


def _trained(model: Path, folder: Path) -> Iterator[Finding]:
    """Forward pass, backward pass and updates on two ranks.

    Raises:
        LaunchError: the workers did not end well.
    """
    import polars as pl

    from megatron_reason.schema.method import create_method
    from megatron_reason.training.jobs import TrainJob

    rows = [
        {"sample_id": str(index), "role": "demo", "ids": ids, "num_prompt_tokens": _PROMPT,
         "template_hash": "none"}
        for index, ids in enumerate(_sequences())
    ]  # fmt: skip
    write_table(folder / "table", Kind.TOKENS, pl.DataFrame(rows))
    job = TrainJob(
        model=ModelConfig(path=str(model)),
        model_folder=model,
        output=folder / "trained",
        seed=0,
        method=create_method("sft", demos_per_update=_SEQUENCES).config,
        train=TrainConfig(updates=_UPDATES, optim=OptimConfig(lr=1e-2, schedule="constant")),
        table=folder / "table",
    )
    ranks = min(2, platform.num_gpus() or 2)
    with (folder / "console").open("w") as console, redirect_stderr(console):
        run_on_ranks(job, "self-test", LaunchConfig(processes=ranks), folder)
    metrics = read_metrics(job.output / METRICS)
    losses = [row["train/loss"] for row in metrics]
    norm, expected = metrics[0]["train/grad_norm"], math.log(_VOCABULARY)
    where = f"{ranks} rank{'s' if ranks > 1 else ''} ({platform.distributed_backend()})"
    yield _judged(
        "forward pass", abs(losses[0] - expected) < 0.5,
        f"loss {losses[0]:.2f}; {expected:.2f} is a random model's",
    )  # fmt: skip
    yield _judged(
        "backward pass", math.isfinite(norm) and norm > 0, f"gradient norm {norm:.2f}"
    )  # fmt: skip
    yield _judged(
        "updates", losses[-1] < 0.9 * losses[0],
        f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {_UPDATES} on {where}",
    )  # fmt: skip


def _judged(what: str, is_right: bool, found: str) -> Finding:
    return Finding(what, found, "ok" if is_right else "wrong", "" if is_right else f"{_REPAIR}.")


def _answers(engine: EngineName, model: Path, folder: Path, reference: list[float]) -> str:
    """Let an engine answer with the trained weights, or the random ones where there are none.

    Args:
        engine: which.
        model: the random model.
        folder: where the trained one may be, and logs go.
        reference: log-probs that the first engine gave, filled by it; later ones must agree.

    Raises:
        GenerationError: it did not start, or answers something else.
    """
    from megatron_reason.generation.open import open_engine

    trained = folder / "trained" / "huggingface"
    config = EngineConfig(name=engine, max_model_len=64, max_num_seqs=8, kv_cache_mb=64)
    prompts = [ids[:_PROMPT] for ids in _sequences()]
    greedy = SamplingConfig(temperature=0, max_tokens=_ANSWER)
    weights = trained if trained.is_dir() else model
    with closing(open_engine(weights, config, dtype="bfloat16", log_folder=folder)) as asked:
        drawn = asked.generate(prompts, greedy)
        scores = [value for row in asked.score(_sequences()) for value in row]
    tokens = sum(len(one.token_ids) for row in drawn for one in row)
    if tokens != _SEQUENCES * _ANSWER:
        raise GenerationError(
            engine, f"{tokens} tokens came, {_SEQUENCES * _ANSWER} were asked for.", "Report it."
        )
    if not reference:
        reference += scores
        return f"{tokens} tokens, {len(scores)} log-probs"
    gap = sum(abs(a - b) for a, b in zip(scores, reference, strict=True)) / len(scores)
    if not gap < _MOST_GAP:
        raise GenerationError(
            engine, f"its log-probs are {gap:.2f} nats from those of transformers.",
            "mreason doctor --model DIR says who is wrong about a model.",
        )  # fmt: skip
    return f"{tokens} tokens; log-probs {gap:.1e} nats from transformers'"


def _grades() -> str:
    """Have a right and a wrong answer graded.

    Raises:
        RewardError: another verdict than they deserve.
    """
    from megatron_reason.rewards.pool import AnswerPool

    with AnswerPool(workers=1) as pool:
        verdicts = pool.grade_many([("1/2", response) for response in _GRADED])
    found = [verdict.status for verdict in verdicts]
    if found != [*_GRADED.values()]:
        raise RewardError(
            "math_verify", f"a right and a wrong answer were judged {' and '.join(found)}.",
            "Type: pip install math-verify.",
        )  # fmt: skip
    return "a right answer is right, a wrong one wrong"
