"""A real server of the test models, and a client with plain sockets."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from golden.models import model_folder
from PIL import Image

from shaderfusion.cli.generate import make_field_parser
from shaderfusion.server.app import make_app
from shaderfusion.server.models import Models, find_models
from shaderfusion.server.running import HttpServer, listen, own_names
from shaderfusion.server.service import Service
from shaderfusion.server.settings import Fields
from shaderfusion.server.setup import Limits, Setup

MODELS = [str(model_folder("sd1")), str(model_folder("odd"))]
SMALL: dict[str, Any] = {"prompt": "a fox", "width": 16, "height": 16, "steps": 2, "seed": 1, "scheduler": "ddim"}
LONG: dict[str, Any] = {**SMALL, "steps": 1000, "scheduler": "dpm2"}
"""A job that lasts until it is cancelled."""
LIMITS = Limits(max_side=64, max_steps=1000, max_images=2, max_queue=3, max_body=1_000_000, max_pixels=1 << 16)
PATIENCE_S = 60.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Of a server at an address."""

    def __init__(self, port: int, service: Service | None = None) -> None:
        self.port = port
        self._service = service

    @property
    def service(self) -> Service:
        assert self._service
        return self._service

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as connection:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.ask("POST", path, body, headers)

    def generate(self, **fields: Any) -> list[tuple[str, Any]]:
        """All events of a job."""
        with self.events(**fields) as events:
            return list(events)

    @contextmanager
    def events(self, path: str = "/api/generate", **fields: Any) -> Iterator[Iterator[tuple[str, Any]]]:
        """Of a job, as they come; the connection is closed at the end of the block, whatever comes still."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as connection:
            connection.request("POST", path, json.dumps(fields))
            with closing(connection.getresponse()) as answer:
                if answer.status != 200:
                    raise AssertionError(answer.read())
                yield read_events(answer)

    def send(self, data: bytes, *, shut: bool = False) -> bytes:
        """Raw bytes; what comes until the server closes, or nothing comes for a second."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            connection.settimeout(1.0)
            found = b""
            try:
                connection.sendall(data)
                if shut:
                    connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65536):
                    found += piece
            except (TimeoutError, ConnectionError):
                pass
            return found

    def wait_for(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Until what /api/device says of the queue is so."""
        end = time.monotonic() + PATIENCE_S
        while not condition(self.get("/api/device").json["queue"]):
            assert time.monotonic() < end
            time.sleep(0.02)


def read_events(lines: Any) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in lines:
        if line.startswith(b"event: "):
            name = line[7:].strip().decode()
        elif line.startswith(b"data: "):
            yield name, json.loads(line[6:])


def picture_of(data_url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data_url.partition(",")[2])))


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def make_png(width: int = 20, height: int = 12, mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    Image.new(mode, (width, height), "red" if mode == "RGB" else None).save(data, "png")
    return data.getvalue()


@contextmanager
def serving(
    runtime: str,
    *,
    limits: Limits = LIMITS,
    models: list[str] = MODELS,
    output_dir: Path | None = None,
    lora_dir: Path | None = None,
    api_key: str | None = None,
    origins: tuple[str, ...] = (),
    exports: Mapping[str, Path] | None = None,
) -> Iterator[Client]:
    """A server in a thread of this process."""
    common = {"device": None, "runtime": runtime, "dtype": "f32", "tuning": "off", "memory": "normal"}
    setup = Setup({**common, "lora_dir": lora_dir}, limits, output_dir)
    service = Service(
        Models(find_models(models, None), setup.common, models), Fields(make_field_parser(), setup), setup
    )
    app = make_app(service, hosts=own_names("127.0.0.1"), origins=origins, api_key=api_key, exports=exports)
    with closing(listen("127.0.0.1", 0)) as opened:
        ready = threading.Event()
        server = HttpServer(app, service, opened, on_ready=ready.set)
        thread = threading.Thread(target=server.run_until_stopped)
        thread.start()
        assert ready.wait(PATIENCE_S)
        try:
            yield Client(opened.getsockname()[1], service)
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
            service.models.close()


@contextmanager
def process(runtime: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """The command, with one small model."""
    command = [sys.executable, "-m", "shaderfusion", "serve", "--port", "0", "--runtime", runtime, "--model", MODELS[0]]
    source = Path(__file__).parents[2] / "src"
    command += ["--dtype", "f32", "--max-steps", "1000", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=source) as started:
        try:
            assert started.stdout
            url = started.stdout.readline().strip()
            yield started, Client(int(url.rpartition(":")[2]))
        finally:
            started.kill()
