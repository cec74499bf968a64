"""Whether our Megatron model computes what transformers computes from the same weights.

As a module (`-m megatron_reason.pipeline.parity JOB`) this is the worker that holds the Megatron
model. Both sides run in float32 on the same fixed token ids. Not here: comparing weights
(`conversion.py`).
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from megatron_reason import platform
from megatron_reason.config.base import Strict
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.files import read_json, write_json, write_text
from megatron_reason.launch.base import Job
from megatron_reason.launch.local import LocalLauncher
from megatron_reason.logs import setup_logging
from megatron_reason.models.architecture import read_architecture
from megatron_reason.schema.topology import Topology

if TYPE_CHECKING:
    from torch import nn

_NUM_IDS = 129
_SEED = 0


class ParityJob(Strict):
    """What every worker reads."""

    source: Path
    """Hugging Face folder of the model."""
    parallel: ParallelConfig
    """Layout in which the model is held."""
    sequences: tuple[tuple[int, ...], ...]
    """Token ids; of each sequence all but the first are predicted."""
    result: Path
    """JSON file that is written: log-probability of each predicted token, and the likeliest one."""


@dataclass(frozen=True)
class Agreement:
    """How far Megatron's answers are from those of transformers, both in float32."""

    num_tokens: int
    """Predicted tokens that were compared."""
    largest_logprob_gap: float
    """Largest difference of a token's log-probability, in nats."""
    top1_fraction: float
    """Share of the predictions whose likeliest token is the same."""


def agreement(
    source: Path, parallel: ParallelConfig, *, threads_per_process: int, log_file: Path
) -> Agreement:
    """Compare a Megatron model with transformers' on token ids drawn at random.

    Args:
        source: Hugging Face folder.
        parallel: layout of the Megatron model over as many worker processes as it needs.
        threads_per_process: CPU threads of each.
        log_file: where the workers' output is kept.

    Raises:
        ConversionError: a checkpoint that no family covers.
        LaunchError: workers that did not end well.
    """
    hf_config, _ = read_architecture(source)
    generator = random.Random(_SEED)
    sequences = [[generator.randrange(hf_config.vocab_size) for _ in range(_NUM_IDS)]]
    logprobs, likeliest = megatron_answers(
        source, sequences, parallel, threads_per_process=threads_per_process, log_file=log_file
    )
    their_logprobs, their_likeliest = transformers_answers(source, sequences)
    pairs = zip(logprobs, their_logprobs, strict=True)
    same = [ours == theirs for ours, theirs in zip(likeliest, their_likeliest, strict=True)]
    return Agreement(len(same), max(abs(a - b) for a, b in pairs), sum(same) / len(same))


def megatron_answers(
    source: Path, sequences: Sequence[Sequence[int]], parallel: ParallelConfig, *,
    threads_per_process: int, log_file: Path,
) -> tuple[list[float], list[int]]:  # fmt: skip
    """Log-probability of each predicted token in float32, and the likeliest token in its place.

    Args:
        source: Hugging Face folder.
        sequences: token ids; of each sequence all but the first are predicted.
        parallel: layout of the Megatron model over as many worker processes as it needs.
        threads_per_process: CPU threads of each.
        log_file: where the workers' output is kept.

    Raises:
        LaunchError: workers that did not end well.
    """
    # The ranks that share the tokens hold the same weights.
    parallel = parallel.model_copy(update={"context_parallel_size": 1})
    with TemporaryDirectory() as folder:
        result = Path(folder) / "answers.json"
        ids = tuple(map(tuple, sequences))
        job = ParityJob(source=source.resolve(), parallel=parallel, sequences=ids, result=result)
        file = Path(folder) / "parity.json"
        write_text(file, job.model_dump_json())
        LocalLauncher().run(
            Job(
                name=f"log-probs of {source}",
                module="megatron_reason.pipeline.parity",
                arguments=(str(file),),
                processes=parallel.model_size,
                threads_per_process=threads_per_process,
                log_file=log_file,
            )
        )
        logprobs, likeliest = read_json(result)
    return logprobs, likeliest


def transformers_answers(
    source: Path, sequences: Sequence[Sequence[int]]
) -> tuple[list[float], list[int]]:
    """The same as `megatron_answers`, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    logprobs: list[float] = []
    likeliest: list[int] = []
    for ids in sequences:
        ids_T = torch.tensor(ids)
        with torch.no_grad():
            logits_TV = model(ids_T[None]).logits[0, :-1]
        logprobs += logits_TV.log_softmax(-1).gather(-1, ids_T[1:, None])[:, 0].tolist()
        likeliest += logits_TV.argmax(-1).tolist()
    return logprobs, likeliest


def _answers_of(
    stage: "nn.Module", sequences: Sequence[Sequence[int]], topology: Topology
) -> tuple[list[float], list[int]] | None:
    """The same on this rank's stage, if it is the last one; None on others."""
    import torch
    import torch.distributed as dist

    from megatron_reason.engine.forward import PLAIN, hidden_step, statistics_step
    from megatron_reason.engine.packing import pack
    from megatron_reason.engine.prepass import forward_only
    from megatron_reason.models.build import head_weight, vocab_size
    from megatron_reason.schema.batch import Role, TokenizedSample

    samples = [
        TokenizedSample(str(number), Role.DEMO, tuple(ids), 1)
        for number, ids in enumerate(sequences)
    ]
    batch = pack(samples, rounding=topology.rounding).to(platform.device())
    step = statistics_step(topology, PLAIN, lambda stats, _: stats.logprob_T)
    logprobs = forward_only(stage, [batch], step)
    hidden = forward_only(stage, [batch], hidden_step(topology))
    if not topology.is_last_stage:
        return None
    mine = hidden[0] @ head_weight(stage).T
    parts = [mine]
    if topology.tp_group is not None:
        parts = [torch.empty_like(mine) for _ in range(topology.tp_size)]
        dist.all_gather(parts, mine, group=topology.tp_group)
    logits_NV = torch.cat(parts, -1)[:, : vocab_size(stage)]
    return logprobs[0][batch.supervised_N].tolist(), logits_NV.argmax(-1).tolist()


def main() -> None:
    """Do the job named on the command line, on this rank."""
    job = ParityJob.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = ModelConfig(path=str(job.source), dtype="float32")
    with platform.cpu():
        from megatron_reason.engine.startup import load_model, parallel_world

        with parallel_world(job.parallel, seed=_SEED) as topology:
            setup_logging(rank=topology.rank)
            stage = load_model(model, job.source, job.parallel, topology)
            answers = _answers_of(stage, job.sequences, topology)
            if topology.speaks:
                write_json(job.result, answers)


if __name__ == "__main__":
    main()
