"""What transformers, Megatron and vLLM say about the same tokens of one model, and who disagrees.

All compute in float32, so what is left is a few millionths of a nat; a difference that matters is a
wrong weight, position or norm somewhere. Not here: the noise of bfloat16, which training measures
(`rollout/mismatch.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.sampling import EngineConfig
from megatron_reason.generation.probe import random_sequence, text_sequences
from megatron_reason.models.architecture import read_architecture
from megatron_reason.pipeline.parity import megatron_answers, transformers_answers

_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Difference:
    """How far two programs are apart on the same tokens."""

    first: str
    second: str
    mean: float
    """Mean |difference| of a token's log-probability, in nats."""
    largest: float
    """Largest |difference|."""

    @property
    def matters(self) -> bool:
        """Whether rounding cannot explain it."""
        return not self.mean <= _TOLERANCE


@dataclass(frozen=True)
class Opinions:
    """What came of asking everybody."""

    num_tokens: int
    """Tokens that were scored."""
    differences: tuple[Difference, ...]
    """Of every two programs."""
    absent: tuple[str, ...]
    """Programs that are not installed."""

    @property
    def outlier(self) -> str | None:
        """The one that disagrees with all others while those agree; None if there is no such."""
        everybody = {name for pair in self.differences for name in (pair.first, pair.second)}
        for name in sorted(everybody):
            with_it = [d for d in self.differences if name in (d.first, d.second)]
            others = [d for d in self.differences if d not in with_it]
            if others and all(d.matters for d in with_it) and not any(d.matters for d in others):
                return name
        return None

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not any(difference.matters for difference in self.differences):
            return "all agree"
        if self.outlier is not None:
            return f"{self.outlier} disagrees with the others"
        return "they disagree, and nobody is in the majority"


def ask_everybody(model: Path, *, threads: int) -> Opinions:
    """Score fixed sequences with every program that is installed.

    Args:
        model: Hugging Face folder.
        threads: CPU threads.

    Raises:
        ConversionError: a model that no family covers.
        LaunchError: the Megatron worker did not end well.
        GenerationError: vLLM did not start.
    """
    read_architecture(model)
    sequences = [*text_sequences(model), random_sequence(model)]
    with TemporaryDirectory() as folder:
        answers = {
            "transformers": transformers_answers(model, sequences)[0],
            "megatron": megatron_answers(
                model, sequences, ParallelConfig(), threads_per_process=threads,
                log_file=Path(folder) / "megatron.log",
            )[0],
        }  # fmt: skip
        has_vllm = find_spec("vllm") is not None
        if has_vllm:
            answers["vllm"] = _vllm_answers(model, sequences, Path(folder))
    return compared(answers, absent=() if has_vllm else ("vllm",))


def compared(answers: Mapping[str, Sequence[float]], *, absent: Sequence[str] = ()) -> Opinions:
    """Differences of every two programs.

    Args:
        answers: log-probabilities of the same tokens, by program; at least two.
        absent: programs that were not asked.
    """
    differences: list[Difference] = []
    for first, second in combinations(answers, 2):
        gaps = [abs(a - b) for a, b in zip(answers[first], answers[second], strict=True)]
        differences.append(Difference(first, second, sum(gaps) / len(gaps), max(gaps)))
    return Opinions(len(next(iter(answers.values()))), tuple(differences), tuple(absent))


def _vllm_answers(model: Path, sequences: Sequence[Sequence[int]], log_folder: Path) -> list[float]:
    from megatron_reason.generation.vllm_engine import VllmEngine

    longest = max(map(len, sequences))
    config = EngineConfig(max_model_len=longest + 1, max_num_seqs=len(sequences), kv_cache_mb=256)
    with VllmEngine(model, config, dtype="float32", log_folder=log_folder) as engine:
        return [logprob for row in engine.score(sequences) for logprob in row]
