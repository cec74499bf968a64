"""The tokens table as a training loop sees it: rows by role, checked once.

Not here: which rows an update takes (`engine/order.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from megatron_reason.engine.order import rows_of_update
from megatron_reason.errors import DataError
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import Method, UpdatePlan
from megatron_reason.schema.tables import Kind, read_table


@dataclass(frozen=True)
class TrainingSet:
    """The tokens table, by role."""

    frame: pl.DataFrame
    pools: Mapping[Role, list[int]]

    @classmethod
    def read(cls, folder: Path, method: Method[Any]) -> "TrainingSet":
        """Read the tokens table of `folder` and check that it has what `method` needs.

        Raises:
            DataError: a required role has no rows.
        """
        frame = read_table(folder, Kind.TOKENS).with_row_index("row")
        pools = {
            Role(key[0]): rows["row"].to_list()
            for key, rows in frame.group_by("role", maintain_order=True)
        }
        for role in method.required().roles - pools.keys() - {Role.ROLLOUT}:
            raise DataError(
                str(folder),
                f"method '{method.config.name}' needs sequences of role '{role}'; there are none.",
                f"Add a table with role '{role}' to the stage 'mix' that made this one.",
            )
        return cls(frame, pools)

    def check_ids(self, vocabulary: int) -> None:
        """Refuse ids that the model has no embedding for.

        Raises:
            DataError: naming the first sequence with one.
        """
        ids = pl.col("ids").list
        bad = self.frame.filter((ids.max() >= vocabulary) | (ids.min() < 0))
        if not bad.is_empty():
            raise DataError(
                f"sequence {bad['sample_id'][0]}",
                f"it and {bad.height - 1} others have token ids outside of 0..{vocabulary - 1}, "
                "the model's vocabulary.",
                "Make the table with the tokenizer of the model that is trained: run 'mix' again.",
            )

    def check_template(self, template_hash: str) -> None:
        """Refuse sequences that another tokenizer or template made.

        Raises:
            DataError: naming the first such sequence.
        """
        others = self.frame.filter(pl.col("template_hash") != template_hash)
        if not others.is_empty():
            raise DataError(
                f"sequence {others['sample_id'][0]}",
                f"it and {others.height - 1} others were made with another tokenizer or template.",
                "Run 'mix' again with the model and the template of this run.",
            )

    def supervised_share(self) -> float:
        """Share of all positions that are trained on.

        Raises:
            DataError: it is 0.
        """
        lengths = self.frame["ids"].list.len()
        positions = int((lengths - 1).clip(lower_bound=0).sum())
        masked = (self.frame["num_prompt_tokens"] - 1).clip(lower_bound=0)
        share = 1 - int(masked.sum()) / max(positions, 1)
        if share <= 0:
            raise DataError(
                "training table",
                f"none of its {positions} positions is supervised: every sequence is all prompt.",
                "Look at num_prompt_tokens in the table, and at the responses 'mix' read.",
            )
        return share

    def demos_by_problem(self) -> dict[str, list[TokenizedSample]]:
        """Demonstrations of each problem, in the order of the table.

        Raises:
            DataError: demonstrations that do not say which problem they answer.
        """
        rows = self.pools.get(Role.DEMO, [])
        names = self.frame["problem_id"].gather(rows).to_list()
        if None in names:
            raise DataError(
                "training table",
                f"{names.count(None)} of {len(names)} demonstrations have no problem_id, so they "
                "cannot join the rollouts of their problem.",
                "Make the table with the stage 'mix'.",
            )
        found: dict[str, list[TokenizedSample]] = {}
        for row, name in zip(rows, names, strict=True):
            found.setdefault(name, []).append(self.sample(row))
        return found

    def next_samples(
        self, plan: UpdatePlan, consumed: Mapping[Role, int], seed: int
    ) -> list[TokenizedSample]:
        """Stored sequences that the coming update takes, role after role; see `rows_of_update`."""
        return [self.sample(row) for row in rows_of_update(self.pools, plan, consumed, seed)]

    def sample(self, row: int) -> TokenizedSample:
        """Row `row`, ready to be packed."""
        record = self.frame.row(row, named=True)
        return TokenizedSample(
            sample_id=record["sample_id"],
            role=Role(record["role"]),
            ids=tuple(record["ids"]),
            num_prompt_tokens=record["num_prompt_tokens"],
        )
