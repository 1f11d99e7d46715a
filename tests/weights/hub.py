"""A stand-in of the hub on this machine: repositories in memory, one commit each, ranges served."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from acestep.weights.hub import RELEASED
from tests.weights.miniature import GOLDEN_CHECKPOINTS

Files = Mapping[str, bytes]
_API = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)/(?P<kind>revision|tree)/(?P<revision>[^/]+)/?")
_FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@dataclass
class Hub:
    """What is served, and what was asked for.

    Attributes:
        repositories: files by ``(repository, revision)``.
        url: of the server.
        requests: methods and paths, and from which byte on.
        break_after: bytes of a body after which the connection is closed, once.
    """

    repositories: Mapping[tuple[str, str], Files]
    url: str = ""
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    break_after: int | None = None

    def downloads(self) -> list[tuple[str, int]]:
        """Files whose content was asked for, and from which byte on."""
        found = []
        for method, path, start in self.requests:
            if method == "GET" and (match := _FILE.fullmatch(path)):
                found.append((match["name"], start))
        return found


def miniature_hub() -> Hub:
    """The golden checkpoint in place of the released bundle."""
    (bundle,) = RELEASED["acestep-v15-turbo"]
    files = {
        str(path.relative_to(GOLDEN_CHECKPOINTS)): path.read_bytes()
        for path in GOLDEN_CHECKPOINTS.rglob("*")
        if path.is_file()
    }
    return Hub({(bundle.repository, bundle.revision): files})


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def use_endpoint(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``HF_ENDPOINT`` does when the hub's client is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.split("?")[0]
            start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            hub.requests.append((self.command, path, start))
            if match := _API.fullmatch(path):
                self.describe(match["repository"], match["kind"], match["revision"])
            elif match := _FILE.fullmatch(path):
                self.serve(match["repository"], match["revision"], match["name"], start)
            else:
                self.send(404, b"{}", {})

        def describe(self, repository: str, kind: str, revision: str) -> None:
            files = hub.repositories.get((repository, revision))
            if files is None:
                return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if kind == "revision":
                body: object = {"id": repository, "sha": revision, "siblings": _siblings(files), "tags": []}
            else:
                body = [
                    {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                    for name, content in files.items()
                ]
            return self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

        def serve(self, repository: str, revision: str, name: str, start: int) -> None:
            content = hub.repositories.get((repository, revision), {}).get(name)
            if content is None:
                return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": revision, "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.send(206 if start else 200, content[start:], headers)

        def send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.break_after is not None and len(body) > hub.break_after:
                body, hub.break_after = body[: hub.break_after], None
                self.close_connection = True
            self.wfile.write(body)

    return Handler


def _siblings(files: Files) -> list[dict[str, object]]:
    return [{"rfilename": name, "size": len(content)} for name, content in files.items()]


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
