"""Log-probability and entropy of every token of stored answers, under any model: teacher forcing.

What token-level figures are drawn from: the change of probabilities by training, the place of a
checkpoint among reference models, the perplexity of errors. A plain forward pass of the model as
transformers has it, without parallelism, statistics from `ops/token_stats.py` at temperature 1.
Writes `token_scores.parquet`. Not here: figures, and sums over responses for curation
(`curation/score.py`).

T tokens of a batch's responses, D hidden width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_reason.config.base import Strict
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.errors import DataError
from megatron_reason.evaluation.card import read_card
from megatron_reason.files import atomic_path
from megatron_reason.generation.templates import Template, load_template
from megatron_reason.logs import get_logger, progress
from megatron_reason.ops.token_stats import token_stats
from megatron_reason.rewards.base import FAILED_STATUSES
from megatron_reason.schema.records import Finish, Message, Status
from megatron_reason.schema.tables import Kind, read_table

TOKEN_SCORES = "token_scores.parquet"
_LOG = get_logger(__name__)


class TokenScoreConfig(Strict):
    """What `mreason logprobs` can be told."""

    model: ModelConfig
    """The model that scores."""
    template: TemplateConfig = TemplateConfig()
    """How problems become prompts: as in the evaluation that drew the answers."""
    where: Literal["all", "correct", "wrong"] = "all"
    """Which answers are scored."""
    max_responses: int = Field(default=256, ge=1)
    """Most answers scored: the first of every problem, then the second, and so on."""
    max_tokens: int = Field(default=32768, ge=1)
    """Longest prompt plus response; longer ones are left out, with a warning."""
    max_tokens_per_batch: int = Field(default=8192, ge=1)
    """Tokens of one forward pass, padding included."""


@dataclass(frozen=True)
class _Row:
    """An answer and its tokens."""

    keys: dict[str, Any]
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def score_answers(
    answers: Path, model_folder: Path, output: Path, config: TokenScoreConfig
) -> pl.DataFrame:
    """Score the answers stored in an evaluation's folder and write `token_scores.parquet`.

    Args:
        answers: folder with `generations.parquet` and `problems.parquet`.
        model_folder: Hugging Face folder of the model that scores.
        output: folder to write to.
        config: what to score, and how.

    Returns:
        Columns problem_id, sample_index, status, tokens (texts), ids, logprobs and entropies (nats,
        one per token), model.

    Raises:
        DataError: no answers, or none that is asked for and short enough.
    """
    template = load_template(config.template, model_folder)
    if template.hash != read_card(answers).template_hash:
        _LOG.warning(
            "%s were drawn with another template or tokenizer than the one they are scored with",
            answers,
        )
    rows = _rows(answers, template, config)
    model = _load(model_folder, config.model.dtype)
    found: list[dict[str, Any]] = []
    with progress("score", len(rows), "answers") as bar:
        for batch in _batches(rows, config.max_tokens_per_batch):
            for row, (logprobs, entropies) in zip(batch, _scores(model, batch), strict=True):
                ids = list(row.response_ids)
                texts = [template.tokenizer.decode([one]) for one in ids]
                found.append(
                    row.keys
                    | {"tokens": texts, "ids": ids, "logprobs": logprobs, "entropies": entropies}
                )
            bar.advance(len(batch))
    scored = pl.DataFrame(found).sort("problem_id", "sample_index")
    scored = scored.with_columns(model=pl.lit(config.model.path))
    with atomic_path(output / TOKEN_SCORES) as path:
        scored.write_parquet(path)
    return scored


def _rows(answers: Path, template: Template, config: TokenScoreConfig) -> list[_Row]:
    generations = read_table(answers, Kind.GENERATIONS).filter(pl.col("num_tokens") > 0)
    if config.where == "correct":
        generations = generations.filter(pl.col("status") == Status.OK)
    elif config.where == "wrong":
        generations = generations.filter(pl.col("status").is_in([*map(str, FAILED_STATUSES)]))
    problems = read_table(answers, Kind.PROBLEMS)
    messages = dict(zip(problems["problem_id"], problems["messages"], strict=True))
    chosen = generations.sort("sample_index", "problem_id").head(config.max_responses)
    rows = [
        _Row(
            keys={name: row[name] for name in ("problem_id", "sample_index", "status")},
            prompt_ids=tuple(
                template.prompt_ids([Message(**turn) for turn in messages[row["problem_id"]]])
            ),
            response_ids=tuple(
                template.generated_ids(row["response"], finished=row["finish"] != Finish.LENGTH)
            ),
        )
        for row in chosen.to_dicts()
    ]
    kept = [row for row in rows if row.num_tokens <= config.max_tokens and row.response_ids]
    if not kept:
        raise DataError(
            str(answers),
            f"none of its answers is {config.where} and at most {config.max_tokens} tokens long.",
            "Change --set where=... or max_tokens=....",
        )
    if len(kept) < len(rows):
        _LOG.warning("%d answers are longer than max_tokens and left out", len(rows) - len(kept))
    return kept


def _batches(rows: Sequence[_Row], max_tokens: int) -> Iterator[list[_Row]]:
    """Rows of similar length, at most `max_tokens` with padding, or a longer one by itself."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: row.num_tokens):
        if batch and row.num_tokens * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.inference_mode()
def _scores(model: Any, batch: Sequence[_Row]) -> list[tuple[list[float], list[float]]]:  # noqa: ANN401
    """Log-probs and entropies of each row's response tokens."""
    longest = max(row.num_tokens for row in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(batch):
        ids[index, : row.num_tokens] = torch.tensor([*row.prompt_ids, *row.response_ids])
        mask[index, : row.num_tokens] = 1
    hidden = model.base_model(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
    ).last_hidden_state
    parts: list[Tensor] = []
    for index, row in enumerate(batch):
        # The state before a token predicts it.
        begin = len(row.prompt_ids) - 1
        parts.append(hidden[index, begin : begin + len(row.response_ids)])
    hidden_TD = torch.cat(parts)
    target_T = torch.tensor([one for row in batch for one in row.response_ids]).to(model.device)
    stats = token_stats(hidden_TD, model.get_output_embeddings().weight, target_T)
    sizes = [len(row.response_ids) for row in batch]
    logprobs = stats.logprob_T.cpu().split(sizes)
    entropies = stats.entropy_T.cpu().split(sizes)
    return [(a.tolist(), b.tolist()) for a, b in zip(logprobs, entropies, strict=True)]


def _load(folder: Path, dtype: str) -> Any:  # noqa: ANN401 - transformers has no common type
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True
    )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval()
