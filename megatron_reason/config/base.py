"""The two bases of every configuration class.

`Strict` forbids unknown keys and freezes values; `PluginConfig` is a `Strict` chosen by name, owned
by the plug-in it configures. A field documents itself with the string below it. Not here: reading
YAML (`load.py`) and the root of a run (`pipeline/run_config.py`).
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Base of every section: unknown keys are errors, instances are immutable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )
    ABSENT: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Keys that a user may expect here and that are missing on purpose: why, and the way out."""


class PluginConfig(Strict):
    """Base of the configuration of anything picked by name (method, stage, reward, rule)."""

    name: str
    """Name of the plug-in, as `mreason list` prints it."""
