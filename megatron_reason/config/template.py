"""How messages become tokens."""

from megatron_reason.config.base import Strict


class TemplateConfig(Strict):
    """Section `template`."""

    name: str = "model"
    """`model` (the tokenizer's own chat template) or a template of `mreason list templates`."""
    system: str | None = None
    """System prompt put before conversations that have none; None leaves it to the template."""
    suffix: str = ""
    """Text appended to the last user message, for the model and for training alike."""
