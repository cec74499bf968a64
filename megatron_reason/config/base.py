"""The two bases of every configuration class.

`Strict` forbids unknown keys and freezes values; `PluginConfig` is a `Strict` chosen by name, owned
by the plug-in it configures. A field documents itself with the string below it. Not here: reading
YAML (`load.py`) and the root of a run (`pipeline/run_config.py`).
"""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Base of every section: unknown keys are errors, instances are immutable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )


class PluginConfig(Strict):
    """Base of the configuration of anything picked by name (method, stage, reward, rule)."""

    name: str
    """Name of the plug-in, as `mreason list` prints it."""
