"""Whether our Megatron model computes what transformers computes from the same weights.

As a module (`-m megatron_reason.pipeline.parity JOB`) this is the worker that holds the Megatron
model. Both sides run in float32 on the same fixed token ids. Not here: comparing weights
(`conversion.py`).
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_reason import platform
from megatron_reason.config.base import Strict
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.files import read_json, write_json, write_text
from megatron_reason.launch.base import Job
from megatron_reason.launch.local import LocalLauncher
from megatron_reason.logs import setup_logging
from megatron_reason.models.architecture import read_architecture

_NUM_IDS = 33
_SEED = 0


class ParityJob(Strict):
    """What every worker reads."""

    source: Path
    """Hugging Face folder of the model."""
    parallel: ParallelConfig
    """Layout in which the model is held."""
    ids: tuple[int, ...]
    """Token ids; all but the first are predicted."""
    result: Path
    """JSON file that is written: a log-probability of each predicted token, in nats."""


def largest_gap(
    source: Path, parallel: ParallelConfig, *, threads_per_process: int, log_file: Path
) -> float:
    """Largest difference of a token's log-probability between Megatron and transformers, in nats.

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
    ids = tuple(generator.randrange(hf_config.vocab_size) for _ in range(_NUM_IDS))
    with TemporaryDirectory() as folder:
        result = Path(folder) / "logprobs.json"
        job = ParityJob(source=source.resolve(), parallel=parallel, ids=ids, result=result)
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
        ours: list[float] = read_json(result)
    theirs = _transformers_logprobs(source, ids)
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def _transformers_logprobs(source: Path, ids: Sequence[int]) -> list[float]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ids_T = torch.tensor(ids)
    with torch.no_grad():
        logits_TV = model(ids_T[None]).logits[0, :-1]
    return logits_TV.log_softmax(-1).gather(-1, ids_T[1:, None]).squeeze(-1).tolist()


def main() -> None:
    """Do the job named on the command line, on this rank."""
    job = ParityJob.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = ModelConfig(path=str(job.source), dtype="float32")
    with platform.cpu():
        from megatron_reason.config.train import BatchConfig
        from megatron_reason.engine.prepass import score_sequences
        from megatron_reason.engine.startup import load_model, parallel_world
        from megatron_reason.schema.batch import Role, TokenizedSample

        with parallel_world(job.parallel, seed=_SEED) as topology:
            setup_logging(rank=topology.rank)
            stage = load_model(model, job.source, job.parallel, topology)
            # Every prefix supervises its last token alone, so that each sum is of one token.
            prefixes = [
                TokenizedSample(str(end), Role.DEMO, job.ids[:end], end - 1)
                for end in range(2, len(job.ids) + 1)
            ]
            scores = score_sequences(stage, prefixes, BatchConfig(), topology)
            if topology.rank == 0:
                write_json(job.result, [score.logprob_sum for score in scores])


if __name__ == "__main__":
    main()
