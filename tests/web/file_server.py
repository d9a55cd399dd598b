"""A file server that a test can watch and disturb: which bytes were asked for, and answers that are cut or replaced."""

import mimetypes
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["FileServer", "serve"]


@dataclass
class FileServer:
    folder: Path
    url: str = ""
    knows_ranges: bool = True
    cut_after: dict[str, int] = field(default_factory=dict)
    """By path: the connection is closed after so many bytes of each answer."""
    replaced: dict[str, bytes] = field(default_factory=dict)
    """By path: another content."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of each request since the last `forget`."""
    is_down: bool = False
    """Every connection is closed without an answer, as where there is no network."""

    def forget(self) -> None:
        """As new, but for the folder."""
        self.knows_ranges, self.is_down = True, False
        self.cut_after, self.replaced, self.requests = {}, {}, []

    def ranges_of(self, path: str) -> list[str | None]:
        """Of the requests for that path."""
        return [asked for name, asked in self.requests if name == path]


@contextmanager
def serve(folder: Path) -> Iterator[FileServer]:
    """Serves a folder on a free port of this machine, until the block ends."""
    server = FileServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

        def do_GET(self) -> None:
            name = self.path.split("?")[0].lstrip("/") or "index.html"
            server.requests.append((name, self.headers["Range"]))
            if server.is_down:
                self.close_connection = True
                return
            file = folder / name
            content = server.replaced.get(name)
            if content is None and file.is_file():
                content = file.read_bytes()
            if content is None:
                self.send_error(404)
                return
            match = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "") if server.knows_ranges else None
            start = int(match[1]) if match else 0
            if match and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if match else 200)
            if match:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Type", mimetypes.guess_type(name)[0] or "application/octet-stream")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = len(content)
            if name in server.cut_after:
                end = min(end, start + server.cut_after[name])
                self.close_connection = True
            self.wfile.write(content[start:end])
            if end < len(content):
                time.sleep(0.3)  # a browser drops what it has not read yet when the connection ends

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A browser that goes away is no failure."""

    http = Server(("127.0.0.1", 0), Handler)
    server.url = f"http://localhost:{http.server_address[1]}/"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
