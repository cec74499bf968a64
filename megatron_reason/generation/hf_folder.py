"""What engines ask of a Hugging Face folder: what it holds, and whether that would fit.

Not here: reading weights (`models/importer.py`, and the engines themselves).
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import safe_open

from megatron_reason.errors import GenerationError
from megatron_reason.files import read_json

_MAY_DIFFER = frozenset(
    {
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "max_position_embeddings",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)
_TIED_HEAD = "lm_head.weight"
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
_NUM_STRETCHES = 64
_STRETCH_BYTES = 1 << 16


def check_same_architecture(running: Path, wanted: Path) -> None:
    """Make sure that the weights of `wanted` mean the same in the model of `running`.

    Raises:
        GenerationError: no weights there, another configuration (a changed `rope_theta` would stay
            unnoticed by a live engine), or other tensors.
    """
    way_out = "Open a new engine on this folder."
    ours, theirs = _config(running), _config(wanted)
    if differences := [
        f"{key} {ours.get(key)!r} -> {theirs.get(key)!r}"
        for key in sorted((ours.keys() | theirs.keys()) - _MAY_DIFFER)
        if ours.get(key) != theirs.get(key)
    ]:
        raise GenerationError(
            str(wanted), f"its config.json is another model's: {'; '.join(differences)}.", way_out
        )
    ours, theirs = (set(tensor_shapes(folder).items()) for folder in (running, wanted))
    missing, unknown = ours - theirs, theirs - ours
    if missing or unknown:
        raise GenerationError(
            str(wanted),
            f"its tensors differ from the running model's: {len(missing)} missing "
            f"{sorted(missing)[:3]}, {len(unknown)} unknown {sorted(unknown)[:3]}.",
            way_out,
        )


def weights_fingerprint(folder: Path) -> str:
    """Hash over sizes and 64 stretches of each weight file: quick, and new after any training.

    Raises:
        GenerationError: no weights there.
    """
    _config(folder)
    digest = sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as stream:
            for index in range(_NUM_STRETCHES):
                stream.seek(size * index // _NUM_STRETCHES)
                digest.update(stream.read(_STRETCH_BYTES))
    return digest.hexdigest()[:16]


def vocabulary_fingerprint(folder: Path) -> str:
    """Hash over what token ids mean: the size of the embedding, and the tokenizer's vocabulary."""
    digest = sha256(repr(_config(folder).get("vocab_size")).encode())
    for name in _VOCABULARY_FILES:
        path = folder / name
        if path.is_file():
            digest.update(name.encode())
            digest.update(_vocabulary(path))
    return digest.hexdigest()[:16]


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor but a head that may be written twice when it is tied."""
    shapes: dict[str, tuple[int, ...]] = {}
    is_tied = bool(_config(folder).get("tie_word_embeddings"))
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                if not (is_tied and name == _TIED_HEAD):
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes


def _vocabulary(path: Path) -> bytes:
    """What of a tokenizer's file gives ids their meaning; settings such as padding may differ."""
    if path.name != "tokenizer.json":
        return path.read_bytes()
    content = read_json(path)
    parts = [content.get("model"), content.get("added_tokens")]
    return json.dumps(parts, sort_keys=True).encode()


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file() or not any(folder.glob("*.safetensors")):
        raise GenerationError(
            str(folder),
            "there is no config.json with *.safetensors beside it.",
            "Point to a Hugging Face folder, for example a checkpoint's 'huggingface'.",
        )
    return read_json(path)
