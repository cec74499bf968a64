"""Which answers a page shows, and how: verdicts, and tokens coloured by their probability.

Not here: the page (`page.py`), and the probabilities (`evaluation/token_scores.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from megatron_reason.report.places import TOKEN_SCORES
from megatron_reason.report.run_data import Measurement
from megatron_reason.schema.records import Status

_NUM_EXAMPLES = 4
_LONGEST_RESPONSE = 4000
_MOST_TOKENS = 1500
_KEYS = ["problem_id", "sample_index"]


@dataclass(frozen=True)
class Token:
    """A token and how sure the model was of it."""

    text: str
    probability: float

    @property
    def colour(self) -> str:
        """Ground behind it: clear for certain, the redder the less likely."""
        doubt = 1 - self.probability
        return f"rgba(213, 94, 0, {0.65 * doubt:.2f})" if doubt > 0.05 else "transparent"


@dataclass(frozen=True)
class Answer:
    """What one model answered."""

    model: str
    response: str
    status: str
    is_right: bool
    extracted: str
    num_tokens: int
    is_cut: bool
    tokens: list[Token]
    """Empty where probabilities are not known."""
    scorer: str
    """Model whose probabilities they are."""


@dataclass(frozen=True)
class Example:
    """One problem and the first answer of every model to it."""

    problem: str
    answer: str
    answers: list[Answer]


def examples(measurements: Sequence[Measurement], count: int = _NUM_EXAMPLES) -> list[Example]:
    """Problems with every model's first answer; those that models differ on come first.

    Behind them comes one answer of every status that is not among these.

    Args:
        measurements: of several models on one set of problems.
        count: most problems given with every model's answer.
    """
    if not measurements:
        return []
    answers = pl.concat(m.answers.with_columns(model=pl.lit(m.model)) for m in measurements)
    firsts = answers.filter(pl.col("sample_index") == 0)
    chosen = (
        firsts.group_by("problem_id")
        .agg(difference=((pl.col("status") == Status.OK).mean() - 0.5).abs())
        .sort("difference", "problem_id")
        .head(count)["problem_id"]
        .to_list()
    )
    shown = firsts.filter(pl.col("problem_id").is_in(chosen))
    rare = answers.filter(~pl.col("status").is_in(shown["status"].to_list())).unique(
        "status", keep="first", maintain_order=True
    )
    rows = _whole(measurements, pl.concat([shown, rare]))
    first_rows, rare_rows = rows[: len(shown)], rows[len(shown) :]
    groups = [[row for row in first_rows if row["problem_id"] == key] for key in chosen]
    groups += [[row] for row in rare_rows]
    return [
        Example(group[0]["problem"], group[0]["answer"], [_answer(row) for row in group])
        for group in groups
    ]


def _whole(measurements: Sequence[Measurement], wanted: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows with their texts and token scores, in the order in which they are wanted."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for measurement in measurements:
        keys = wanted.filter(pl.col("model") == measurement.model).select(_KEYS)
        scores = _token_scores(measurement, keys)
        for row in measurement.whole(keys).iter_rows(named=True):
            key = (measurement.model, row["problem_id"], row["sample_index"])
            tokens, scorer = scores.get(key[1:], ([], ""))
            found[key] = row | {
                "model": measurement.model, "tokens": tokens, "scorer": scorer,
            }  # fmt: skip
    columns = ("model", *_KEYS)
    return [found[key] for key in wanted.select(columns).iter_rows()]


def _token_scores(
    measurement: Measurement, keys: pl.DataFrame
) -> dict[tuple[str, int], tuple[list[Token], str]]:
    """Tokens of the wanted answers and who scored them, where that was stored beside them."""
    path = measurement.folder / TOKEN_SCORES
    if not path.is_file():
        return {}
    rows = (
        pl.scan_parquet(path)
        .select(*_KEYS, "tokens", "logprobs", "model")
        .join(keys.lazy(), on=_KEYS, how="semi")
        .collect()
    )
    return {
        (problem, index): (
            [
                Token(text, math.exp(logprob))
                for text, logprob in zip(tokens[:_MOST_TOKENS], logprobs, strict=False)
            ],
            scorer,
        )
        for problem, index, tokens, logprobs, scorer in rows.iter_rows()
    }


def _answer(row: Mapping[str, Any]) -> Answer:
    return Answer(
        model=row["model"],
        response=_shortened(row["response"]),
        status=row["status"],
        is_right=row["status"] == Status.OK,
        extracted=row["extracted"] or "",
        num_tokens=row["num_tokens"],
        is_cut=row["finish"] == "length",
        tokens=row["tokens"],
        scorer=row["scorer"],
    )


def _shortened(text: str) -> str:
    """The text, its middle left out if it is very long."""
    if len(text) <= _LONGEST_RESPONSE:
        return text
    half = _LONGEST_RESPONSE // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"
