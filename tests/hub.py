"""A server of data sets with the paths of the Hugging Face hub, for its real client.

Paths, keys and status codes are those that `huggingface_hub` asks for; files come in ranges.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from threading import Thread
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "0" * 40
TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"
Node = dict[str, Any]


@contextmanager
def hub_of(files: Mapping[str, bytes], *, gated: str = "") -> Iterator[str]:
    """Serve `files` by "OWNER/NAME/PATH"; yields the address. The owner `gated` refuses."""
    with Hub(files, gated) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def use_hub(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process's client ask `address`, as `HF_ENDPOINT` does for a new one."""
    from huggingface_hub import HfFileSystem, constants

    HfFileSystem.clear_instance_cache()
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + TEMPLATE)


class Hub(ThreadingHTTPServer):
    """The server; a thread for each connection."""

    def __init__(self, files: Mapping[str, bytes], gated: str) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = files
        self.gated = gated

    def nodes(self, repository: str) -> dict[str, Node]:
        """Files and folders of a repository by their paths in it."""
        nodes: dict[str, Node] = {}
        for file, content in self.files.items():
            if not file.startswith(f"{repository}/"):
                continue
            path = PurePosixPath(file).relative_to(repository)
            for parent in map(str, path.parents[:-1]):
                nodes[parent] = {"type": "directory", "path": parent, "oid": COMMIT}
            oid = sha1(content, usedforsecurity=False).hexdigest()
            nodes[str(path)] = {"type": "file", "path": str(path), "size": len(content), "oid": oid}
        return nodes

    def tree(self, repository: str, folder: str, *, recursive: bool) -> list[Node]:
        """What lies in `folder`, or below it."""
        where = PurePosixPath(folder)
        found = ((PurePosixPath(path), node) for path, node in self.nodes(repository).items())
        return [
            node
            for path, node in found
            if (where in path.parents if recursive else where == path.parent)
        ]


class Answer(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return cast(Hub, self.server)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/datasets/"):
            self._describe(*path.removeprefix("api/datasets/").split("/", 4))
        else:
            owner, name, _, _, file = path.removeprefix("datasets/").split("/", 4)
            self._give(self.hub.files.get(f"{owner}/{name}/{file}"))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        owner, name, *_ = unquote(self.path).removeprefix("/api/datasets/").split("/")
        nodes = self.hub.nodes(f"{owner}/{name}")
        asked = parse_qs(body.decode())["paths"]
        self._json(200, [nodes[path] for path in asked if path in nodes])

    def _describe(self, owner: str, name: str, what: str = "", _: str = "", path: str = "") -> None:
        repository = f"{owner}/{name}"
        if owner == self.hub.gated:
            self._json(403, {"error": "gated"}, "GatedRepo")
        elif not self.hub.nodes(repository):
            self._json(404, {"error": "none"}, "RepoNotFound")
        elif what == "tree":
            recursive = "recursive=true" in self.path.lower()
            self._json(200, self.hub.tree(repository, path, recursive=recursive))
        else:
            self._json(200, {"id": repository, "sha": COMMIT})

    def _give(self, content: bytes | None) -> None:
        if content is None:
            self._json(404, {"error": "none"}, "EntryNotFound")
        elif asked := self.headers["Range"]:
            start, end = asked.removeprefix("bytes=").split("-")
            self._send(206, content[int(start) : int(end) + 1], {})
        else:
            self._send(200, content, {})

    def _json(self, status: int, value: object, code: str = "") -> None:
        headers = {"Content-Type": "application/json", "X-Error-Code": code}
        self._send(status, json.dumps(value).encode(), headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
