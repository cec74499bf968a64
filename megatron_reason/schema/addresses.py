"""Where rows lie: files, folders of files, and addresses on the Hugging Face hub.

An address is `hf://datasets/OWNER/NAME[@REVISION]/PATH`; `*` in it stands for any characters but a
slash, and `**` for any. `HF_ENDPOINT` and `HF_TOKEN` serve as everywhere. Not here: how a file is
read (`curation/_readers.py`, `evaluation/base.py`), and models (`models/sources.py`).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from megatron_reason.errors import DataError

if TYPE_CHECKING:
    from huggingface_hub import HfFileSystem

_HUB = "hf://"
_NO_DATA = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
"""What `datasets` writes beside the tables that it saves to a disk; `cache-*.arrow` repeat rows."""
_BUFFER_BYTES = 1 << 20
_REPOSITORY_PARTS = len(("hf:", "", "datasets", "OWNER", "NAME"))


def is_hub_address(source: str) -> bool:
    """Whether `source` speaks of the hub."""
    return source.startswith(_HUB)


def files_at(source: str, suffixes: Collection[str]) -> list[str]:
    """Files that `source` stands for, in order.

    A folder, a whole repository, or an address with `*` stands for those of its files that end in
    one of `suffixes`; what else lies there (a data set's card, say) is none of the data.

    Args:
        source: a file, a folder or an address.
        suffixes: endings that can be read, with their dots.

    Raises:
        DataError: there is no such file, none that can be read, or the hub does not answer.
    """
    if is_hub_address(source) and len(source.rstrip("/").split("/")) == _REPOSITORY_PARTS:
        source = f"{source.rstrip('/')}/**"
    if is_hub_address(source):
        files = _data(_on_hub(source), suffixes) if "*" in source else [source]
    elif Path(source).is_dir():
        below = (str(path) for path in Path(source).rglob("*") if path.is_file())
        files = _data(below, suffixes)
    else:
        files = [source] if Path(source).is_file() else []
    if not files:
        raise DataError(
            source,
            f"there is no such file, or none that ends in one of {', '.join(suffixes)}.",
            "Check the path, or the address.",
        )
    for file in files:
        if PurePath(file).suffix not in suffixes:
            raise DataError(
                source,
                f"'{PurePath(file).suffix}' is no known format.",
                f"Give a file that ends in one of {', '.join(suffixes)}, or a folder: on the hub, "
                "OWNER/NAME/FOLDER/**.",
            )
    return files


@contextmanager
def open_binary(file: str) -> Iterator[BinaryIO]:
    """Open a file or an address without `*`; what is not asked for is not fetched.

    Raises:
        DataError: the hub has no such file, or does not answer.
        OSError: a local file cannot be read.
    """
    if not is_hub_address(file):
        with Path(file).open("rb") as stream:
            yield stream
        return
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    with _hub_answers(file) as hub:
        source = hub.open(file, "rb")
    try:
        # Its own lines are slices of megabytes.
        with BufferedReader(cast(RawIOBase, source), _BUFFER_BYTES) as stream:
            yield stream
    except (HfHubHTTPError, httpx.HTTPError) as error:
        raise _not_given(file, error) from error


def _data(files: Iterable[str], suffixes: Collection[str]) -> list[str]:
    """Those of `files` that hold rows, in order."""
    paths = ((file, PurePath(file)) for file in files)
    return sorted(
        file
        for file, path in paths
        if path.suffix in suffixes and path.name not in _NO_DATA and not path.match("cache-*.arrow")
    )


def _on_hub(pattern: str) -> list[str]:
    with _hub_answers(pattern) as hub:
        found = cast("Mapping[str, Any]", hub.glob(pattern, detail=True))
    # A folder may be called like a file: AceReason-1.1-SFT lies in `sft_data.parquet/`.
    return [f"{_HUB}{path}" for path, node in found.items() if node["type"] == "file"]


@contextmanager
def _hub_answers(address: str) -> "Iterator[HfFileSystem]":
    from huggingface_hub import HfFileSystem
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    try:
        yield HfFileSystem()
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError, NotImplementedError) as error:
        raise _not_given(address, error) from error


def _not_given(address: str, error: Exception) -> DataError:
    return DataError(
        address,
        f"the hub does not give this: {' '.join(str(error).split())}",
        "Check the address; log in with `hf auth login` where the owner asks for it; a mirror is "
        "named by HF_ENDPOINT. Where there is no network, give the path of a local copy.",
    )
