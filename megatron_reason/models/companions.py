"""Everything in a Hugging Face folder that is not a weight: copied, or changed where asked.

Tokenizer, chat template, generation config and the rest come back byte for byte; of a file that is
changed, only the changed keys differ. Not here: weights (`exporter.py`).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_reason.files import read_json
from megatron_reason.models.checkpoint_files import INDEX

REPORT = "conversion_report.json"
"""What a verification says of the folder it lies in; never copied with the model."""
_TEMPLATE = "chat_template"
_NOT_COPIED = (
    "*.safetensors", INDEX, "pytorch_model*", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack",
    REPORT,
)  # fmt: skip
"""Files that hold the source's weights, which would be old ones beside new ones, or speak of it."""


@dataclass(frozen=True)
class Changes:
    """What an exported folder says otherwise than its source; None keeps the source's."""

    rope_theta: float | None = None
    """Base of the rotary embedding."""
    max_position_embeddings: int | None = None
    """Longest sequence in tokens."""
    chat_template: str | None = None
    """Jinja text that renders conversations."""


def companions(folder: Path) -> list[Path]:
    """Files of a Hugging Face folder that are no weights, sorted."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not any(path.match(pattern) for pattern in _NOT_COPIED)
    ]


def copy_companions(source: Path, target: Path, changes: Changes) -> None:
    """Copy all files of `source` that are no weights to the folder `target`, with `changes`."""
    for path in companions(source):
        shutil.copyfile(path, target / path.name)
    config: dict[str, Any] = read_json(source / "config.json")
    before = json.dumps(config)
    if changes.rope_theta is not None:
        _set_rope_theta(config, changes.rope_theta)
    if changes.max_position_embeddings is not None:
        config["max_position_embeddings"] = changes.max_position_embeddings
    if json.dumps(config) != before:
        _write(target / "config.json", config)
    if changes.chat_template is not None:
        _set_template(target, changes.chat_template)


def _set_rope_theta(config: dict[str, Any], base: float) -> None:
    """Set it wherever the checkpoint keeps it: at the top, among the rotary parameters, both."""
    rope: dict[str, Any] | None = config.get("rope_parameters")
    if rope is not None:
        rope["rope_theta"] = base
    if rope is None or "rope_theta" in config:
        config["rope_theta"] = base


def _set_template(folder: Path, text: str) -> None:
    """Write the template to its own file, and where older libraries look for it if it was there."""
    (folder / f"{_TEMPLATE}.jinja").write_text(text, encoding="utf-8")
    tokenizer = folder / "tokenizer_config.json"
    config: dict[str, Any] = read_json(tokenizer) if tokenizer.is_file() else {}
    if _TEMPLATE in config:
        _write(tokenizer, {**config, _TEMPLATE: text})


def _write(path: Path, config: dict[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
