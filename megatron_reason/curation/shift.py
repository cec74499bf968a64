"""Stage `shift`: how much nearer to a model a rewritten table is than the one it was made from.

Source: Data Rewriting (arXiv 2509.15157), Table 3 and Figure 3: the mean over responses of a
response's summed log-probability under the model that will be trained, for each stage of the
rewriting (`origin`), before and after. Sums grow with length, so means per token stand beside them.
Both tables are scored by `score` first; its context `raw` is the paper's. Writes `shift.json`, and
every problem's numbers to `shift.parquet`. Not here: the scores (`score.py`), pictures.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import polars as pl

from megatron_reason.curation.base import Stage, StageConfig, StageContext, StageResult, stage
from megatron_reason.errors import DataError
from megatron_reason.files import atomic_path, write_json
from megatron_reason.logs import get_logger
from megatron_reason.schema.tables import Kind, read_table

_LOGGER = get_logger(__name__)
NUMBERS = "shift.json"
ROWS = "shift.parquet"
_COLUMNS = ("problem_id", "origin", "scorer", "nll_sum", "num_tokens")
_FIGURES = ("logprob_before", "logprob_after", "per_token_before", "per_token_after")
_WIDTH = 1.96
"""Standard errors in half of a 95 % interval."""


class ShiftConfig(StageConfig):
    """Configuration of the stage `shift`."""

    stage: Literal["shift"] = "shift"
    """Kind of stage."""
    before: str
    """Scored stage with one response a problem: the expert's."""
    after: str
    """Scored stage with one response a problem: the rewritten ones, whose `origin` divides them."""

    def inputs(self) -> tuple[str, ...]:
        """Both tables."""
        return (self.before, self.after)


@stage
class Shift(Stage[ShiftConfig]):
    """Compares log-probabilities problem by problem."""

    config_class = ShiftConfig

    def run(self, context: StageContext) -> StageResult:
        """Write the comparison.

        Raises:
            DataError: a problem that occurs twice, tables that other models or contexts scored, or
                no problem that is in both.
        """
        before = self._scored(context.inputs[self.config.before], self.config.before)
        after = self._scored(context.inputs[self.config.after], self.config.after)
        scorers = {*before["scorer"].unique(), *after["scorer"].unique()}
        if len(scorers) > 1:
            raise DataError(
                f"stage '{self.config.name}'",
                f"the tables were scored in different ways: {', '.join(sorted(scorers))}.",
                "Score both with the same model and context.",
            )
        rows = before.drop("origin", "scorer").join(
            after.drop("scorer"), on="problem_id", suffix="_after"
        )
        if rows.is_empty():
            raise DataError(
                f"stage '{self.config.name}'",
                f"'{self.config.before}' and '{self.config.after}' have no problem in common.",
                "Compare a table with what 'rewrite' made of it.",
            )
        rows = rows.select(
            "problem_id", "origin",
            logprob_before=-pl.col("nll_sum"),
            logprob_after=-pl.col("nll_sum_after"),
            per_token_before=-pl.col("nll_sum") / pl.col("num_tokens"),
            per_token_after=-pl.col("nll_sum_after") / pl.col("num_tokens_after"),
        )  # fmt: skip
        groups = {str(key[0]): part for key, part in rows.group_by("origin", maintain_order=True)}
        numbers = {name: _numbers(part) for name, part in sorted(groups.items())}
        numbers["all"] = _numbers(rows)
        with atomic_path(context.output / ROWS) as path:
            rows.write_parquet(path)
        write_json(context.output / NUMBERS, {"scorer": scorers.pop(), "mean": numbers})
        for name, row in numbers.items():
            _LOGGER.info("%s: %s", name, _line(row))
        return StageResult(len(rows), {"only_in_one": len(before) + len(after) - 2 * len(rows)})

    def _scored(self, folder: Path, name: str) -> pl.DataFrame:
        rows = read_table(
            folder, Kind.SAMPLES, filled=["nll_sum", "num_tokens", "scorer"], columns=_COLUMNS
        )
        self.refuse_repeats(name, rows)
        return rows


def _numbers(rows: pl.DataFrame) -> dict[str, float]:
    """Means, and the gain per token with its 95 % interval."""
    gains: list[float] = (rows["per_token_after"] - rows["per_token_before"]).to_list()
    mean = fmean(gains)
    error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return {
        "problems": len(rows),
        **{name: fmean(rows[name]) for name in _FIGURES},
        "gain_per_token": mean,
        "gain_low": mean - _WIDTH * error,
        "gain_high": mean + _WIDTH * error,
    }


def _line(row: Mapping[str, float]) -> str:
    return (
        f"{row['problems']} problems, log-probability {row['logprob_before']:.2f} -> "
        f"{row['logprob_after']:.2f} a response, {row['per_token_before']:.3f} -> "
        f"{row['per_token_after']:.3f} a token (gain {row['gain_per_token']:.3f} "
        f"[{row['gain_low']:.3f}, {row['gain_high']:.3f}])"
    )
