"""A server on this machine that speaks the hub's protocol, as far as huggingface_hub needs it to list and fetch files.

It keeps a log of what it is asked for, and can be told to break a transfer.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_tests"

_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """Files by path. `access` is open, gated or private; `sizes` are what the listing claims, where it differs."""

    files: Mapping[str, bytes]
    access: str = "open"
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Hub:
    """What the server knows and did."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    """(method, repository/path); a GET of a part has its range as its method."""
    cut_after: dict[str, int] = field(default_factory=dict)
    """Of these files the connection ends after so many bytes, once each."""
    stall: dict[str, threading.Event] = field(default_factory=dict)
    """Of these files half is sent, then the event is set, and no more comes, once each."""
    failing: bool = False
    """Every answer is 503."""

    def fetched(self) -> list[str]:
        """Files of which data was sent, sorted; the log is emptied."""
        paths = sorted(path for method, path in self.log if method not in ("HEAD", "API"))
        self.log.clear()
        return paths


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, file = _API.fullmatch(path), _FILE.fullmatch(path)
        match = api or file
        if match is None or self.hub.failing:
            return self._refuse(503, "")
        name, revision = match[1], match[2] or "main"
        repository = self.hub.repositories.get(name)
        knows_us = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.access == "private" and not knows_us):
            return self._refuse(401, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        if api:
            self.hub.log.append(("API", name))
            return self._list(name, repository)
        if repository.access == "gated":
            return self._refuse(401, "GatedRepo")
        if match[3] not in repository.files:
            return self._refuse(404, "EntryNotFound")
        return self._send(f"{name}/{match[3]}", repository.files[match[3]])

    def _list(self, name: str, repository: Repository) -> None:
        siblings = [
            {"rfilename": path, "size": repository.sizes.get(path, len(data))}
            for path, data in repository.files.items()
        ]
        body = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, path: str, data: bytes) -> None:
        part = self.headers.get("Range") if self.command == "GET" else None
        begin = int(part.removeprefix("bytes=").removesuffix("-")) if part else 0
        self.hub.log.append((part or self.command, path))
        self.send_response(206 if part else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - begin))
        if part:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        stalled = self.hub.stall.pop(path, None)
        end = self.hub.cut_after.pop(path, len(data)) if stalled is None else len(data) // 2
        self.wfile.write(data[begin:end])
        if stalled:
            self.wfile.flush()
            stalled.set()
            self.rfile.read(1)  # until the other side hangs up
        self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub without repositories, until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = _Handler.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
