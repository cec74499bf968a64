"""megatron_reason: SFT and RL methods for reasoning LLMs on Megatron-Core, one file per method.

The names below are what other people's code may rely on; everything else may move. They are
imported on first use, so that a launcher needs neither torch nor Megatron.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from megatron_reason.curation.select import select_gaussian
    from megatron_reason.evaluation.estimators import pass_at_k
    from megatron_reason.models.exporter import export_hf
    from megatron_reason.models.importer import import_hf
    from megatron_reason.ops.token_stats import token_stats, token_stats_from_logits
    from megatron_reason.rewards.pool import AnswerPool
    from megatron_reason.schema.batch import TokenStats
    from megatron_reason.schema.method import create_method, method_names

_HOMES = {
    "AnswerPool": "rewards.pool",
    "TokenStats": "schema.batch",
    "create_method": "schema.method",
    "export_hf": "models.exporter",
    "import_hf": "models.importer",
    "method_names": "schema.method",
    "pass_at_k": "evaluation.estimators",
    "select_gaussian": "curation.select",
    "token_stats": "ops.token_stats",
    "token_stats_from_logits": "ops.token_stats",
}

__all__ = [
    "AnswerPool",
    "TokenStats",
    "create_method",
    "export_hf",
    "import_hf",
    "method_names",
    "pass_at_k",
    "select_gaussian",
    "token_stats",
    "token_stats_from_logits",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - each name has its own type above
    """Import a public name from the room it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module 'megatron_reason' has no attribute '{name}'")
    return getattr(importlib.import_module(f"megatron_reason.{_HOMES[name]}"), name)
