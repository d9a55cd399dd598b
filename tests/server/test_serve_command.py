"""`shaderfusion serve` up to where it listens: what it refuses, and what it says."""

import asyncio
import queue
import shutil
import sys
import webbrowser
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from golden.models import model_folder

from shaderfusion.cli import main
from shaderfusion.errors import InputError

pytest.importorskip("starlette", reason="starlette comes with the test extra")
from shaderfusion.server.models import Models, find_models
from shaderfusion.server.running import HttpServer, listen, own_names
from shaderfusion.server.safety import Guard, is_loopback


@pytest.fixture(autouse=True)
def not_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is served: the command ends when it would."""
    monkeypatch.delenv("SHADERFUSION_API_KEY", raising=False)
    monkeypatch.setattr(HttpServer, "run_until_stopped", lambda self: (self._on_ready(), self._opened.close()))


def serve(*options: str, runtime: str) -> int:
    return main(["serve", "--port", "0", "--runtime", runtime, *options])


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert 'run `pip install -e ".[serve]"` in the folder' in capsys.readouterr().err


def test_loopback_by_default(runtime: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(runtime=runtime) == 0
    out, err = capsys.readouterr()
    assert out.startswith("http://127.0.0.1:")
    assert err == ""


def test_another_address_without_a_key_is_said(
    runtime: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serve("--host", "0.0.0.0", runtime=runtime) == 0
    assert "everyone who reaches 0.0.0.0 can use this server" in capsys.readouterr().err
    assert serve("--host", "0.0.0.0", "--api-key", "secret", runtime=runtime) == 0
    monkeypatch.setenv("SHADERFUSION_API_KEY", "secret")
    assert serve("--host", "0.0.0.0", runtime=runtime) == 0
    assert capsys.readouterr().err == ""


def test_what_is_refused(runtime: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    cases = [
        (["--model", str(tmp_path / "nothing")], "nothing"),
        (["--models-dir", str(tmp_path)], "must hold a folder in diffusers' format"),
        (["--models-dir", str(tmp_path / "nothing")], "must be a folder"),
        (["--output-dir", str(tmp_path / "file")], "cannot be a folder"),
        (["--host", "no such host"], "cannot be listened at"),
        (["--max-steps", "0"], "must be a whole number"),
        (["--port", "70000"], "must be a whole number"),
    ]
    with closing(listen("127.0.0.1", 0)) as taken:
        taken.listen()
        cases.append((["--port", str(taken.getsockname()[1])], "cannot be listened at"))
        for options, sentence in cases:
            assert serve(*options, runtime=runtime) == 2
            assert sentence in capsys.readouterr().err, options


def test_models_of_a_folder(runtime: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is none is left out, and said; pickles are not even looked at."""
    shutil.copytree(model_folder("sd1"), tmp_path / "small")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "old.ckpt").write_bytes(b"x" * 100)
    (tmp_path / "notes").mkdir()
    found = find_models([], tmp_path)
    assert list(found) == ["broken", "small"]
    models = Models(found, {"runtime": runtime})
    assert list(models.known) == ["small"]
    assert "broken is left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="must have another name"):
        find_models([str(tmp_path / "small"), str(model_folder("sd1").parent / ".." / "small")], None)


def test_the_page_is_opened(runtime: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At an address that a browser can go to."""
    opened: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(webbrowser, "open", opened.put)
    for host, address in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")):
        assert serve("--open", "--host", host, runtime=runtime) == 0
        port = capsys.readouterr().out.strip().rpartition(":")[2]
        assert opened.get(timeout=10) == f"http://{address}:{port}"


def test_addresses() -> None:
    assert is_loopback("::ffff:127.0.0.1")
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("192.0.2.1")
    assert {"localhost", "a", "b"} <= own_names("a", ["b"])


def test_addresses_are_compared_as_such() -> None:
    """A socket of IPv6 has IPv4's addresses too, and some can be written in several ways."""
    seen: list[int] = []

    async def app(*_: object) -> None:
        seen.append(200)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    async def ask(host: str, reached: str) -> int:
        guard = Guard(app, hosts=["localhost"], origins=(), api_key=None, max_body=9, refused=lambda status: None)
        scope = {"type": "http", "path": "/", "method": "GET", "server": (reached, 80)}
        await guard({**scope, "headers": [(b"host", host.encode())]}, None, send)  # type: ignore[arg-type]
        return seen[-1]

    for host, reached, status in (
        ("127.0.0.1:80", "::ffff:127.0.0.1", 200),
        ("[::ffff:7f00:1]", "127.0.0.1", 200),
        ("[0:0::1]:80", "::1", 200),
        ("127.0.0.2", "::ffff:127.0.0.1", 421),
        ("127.1", "127.0.0.1", 421),
        ("example.org", "::1", 421),
    ):
        assert asyncio.run(ask(host, reached)) == status, host
