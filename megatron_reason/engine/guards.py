"""What stands between a bad number and the weights.

`NonFiniteGuard` decides what a non-finite gradient norm means; `check_packing` proves on the real
model, before the first update, that neighbours in a micro-batch do not see each other.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl
import torch
from pydantic import TypeAdapter

from megatron_reason.errors import NumericsError
from megatron_reason.files import write_json, write_text
from megatron_reason.logs import get_logger
from megatron_reason.schema.batch import TokenizedSample
from megatron_reason.schema.tables import Kind, write_table

_LOG = get_logger(__name__)
_SAMPLE = TypeAdapter(TokenizedSample)
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}


@dataclass
class NonFiniteGuard:
    """Skips updates with non-finite gradients, keeps their batches, stops after too many."""

    folder: Path
    """Where the offending batches are kept."""
    max_consecutive: int
    """Updates skipped in a row before the run stops."""
    writes: bool = True
    """Whether this rank keeps them; one of all ranks does."""
    skipped: int = 0
    """Updates skipped in all."""
    _consecutive: int = 0

    def admits(self, grad_norm: float, update: int, samples: Sequence[TokenizedSample]) -> bool:
        """Whether the update may be applied.

        A batch that may not is written as a table of tokens, which `mreason train --table` takes,
        and, with the advantages and log-probs that no table has, as `samples.jsonl`.

        Raises:
            NumericsError: more than `max_consecutive` updates in a row were not finite.
        """
        if math.isfinite(grad_norm):
            self._consecutive = 0
            return True
        self.skipped += 1
        self._consecutive += 1
        kept = self.folder / f"nonfinite_update_{update:07d}"
        if self.writes:
            write_table(kept, Kind.TOKENS, pl.DataFrame([_row(sample) for sample in samples]))
            report = {"update": update, "grad_norm": str(grad_norm)}
            write_json(kept / "report.json", report)
            lines = (json.dumps(asdict(sample)) + "\n" for sample in samples)
            write_text(kept / "samples.jsonl", "".join(lines))
            _LOG.warning(
                "update %d skipped: gradient norm %s; batch in %s", update, grad_norm, kept
            )
        if self._consecutive > self.max_consecutive:
            raise NumericsError(
                f"update {update}",
                f"{self._consecutive} updates in a row had non-finite gradients.",
                f"Train on the batches in {self.folder} alone to find the sample, lower the "
                "learning rate, or raise train.max_nonfinite_updates.",
            )
        return False


def kept_batch(folder: Path) -> list[TokenizedSample]:
    """The batch of a skipped update as it was trained on, from the folder that the guard wrote."""
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [_SAMPLE.validate_json(line) for line in lines]


def _row(sample: TokenizedSample) -> dict[str, object]:
    return {
        "sample_id": sample.sample_id,
        "role": str(sample.role),
        "ids": list(sample.ids),
        "num_prompt_tokens": sample.num_prompt_tokens,
    }


def check_packing(
    score: Callable[[list[list[TokenizedSample]]], list[list[float]]],
    samples: Sequence[TokenizedSample], dtype: torch.dtype,
) -> float:  # fmt: skip
    """Largest difference in a sequence's log-probability between alone, first and last in a pack.

    Args:
        score: summed log-probability of each sequence of each given micro-batch.
        samples: at least two short sequences.
        dtype: the parameters' type, which sets the tolerance (per token, in nats).

    Raises:
        NumericsError: the difference per token exceeds the tolerance: attention leaks.
    """
    first, second = samples[:2]
    (alone,), (leading, _), (_, trailing) = score([[first], [first, second], [second, first]])
    per_token = max(abs(alone - leading), abs(alone - trailing)) / first.num_targets
    if per_token > _TOLERANCE[dtype]:
        raise NumericsError(
            "packing self-test",
            f"sample {first.sample_id} changes its log-probability by {per_token:.2e} nats per "
            "token when another sequence is packed beside it.",
            "Set train.batch.max_sequences_per_microbatch to 1 and report this layout.",
        )
    return per_token
