"""Requests that are broken on purpose: each is answered with a sentence, or the socket is closed; the server lives."""

from __future__ import annotations

import gzip
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette comes with the test extra")
from server.serving import (
    LIMITS,
    LONG,
    MODELS,
    PATIENCE_S,
    SMALL,
    Answer,
    Client,
    data_url,
    make_png,
    picture_of,
    serving,
)

TEXTS = ("prompt", "negative_prompt", "model", "scheduler", "rng", "seeds", "emphasis", "prompt_syntax")
TEXTS += ("optimizations",)
NUMBERS = ("guidance_scale", "strength", "eta", "hires", "hires_strength")
WHOLES = ("width", "height", "steps", "seed", "num_images", "clip_skip", "hires_steps", "preview_every")
NO_TEXTS = (1, 1.5, True, [], {}, ["a"])
NO_NUMBERS = ("1", "", True, [], {}, "NaN", 10**30, -1)
NO_WHOLES = ("1", True, 1.5, [], {}, -1, 10**30, 2**64)
TRAVERSALS = (
    "../sd1",
    "/etc/passwd",
    "sd1/../odd",
    "..",
    "",
    "\x00",
    "sd1.safetensors",
    "C:\\x",
    "emoji",
    "owner/name",
)

Case = tuple[str, dict[str, Any]]


def png(width: int, height: int, pixels: bytes, *, color: int = 2, extra: bytes = b"") -> bytes:
    """A PNG that claims a size, whatever it holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(pixels, 9))
        + chunk(b"IEND")
    )


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def riff(kind: bytes, body: bytes) -> bytes:
    inner = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


ZEROS = bytes(10_000_000)
BOMBS = {
    "a claim of 2^31 pixels a side": png(2**31 - 1, 2**31 - 1, b""),
    "a claim of 60,000 pixels a side": png(60_000, 60_000, ZEROS),
    "more pixels than are allowed": make_png(300, 300),
    "no pixels": png(0, 0, b""),
    "a text that unpacks to megabytes": png(
        8, 8, bytes(200), extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(ZEROS * 8, 9))
    ),
    "a profile that unpacks to megabytes": png(
        8, 8, bytes(25), extra=chunk(b"iCCP", b"a\0\0" + zlib.compress(ZEROS * 8, 9))
    ),
    "a cut PNG": make_png()[:45],
    "a PNG of nothing": b"\x89PNG\r\n\x1a\n",
    "a WebP canvas of 16,384 pixels a side": riff(b"VP8X", b"\0\0\0\0" + b"\xff\x3f\0" * 2),
    "a WebP of 2^24 pixels a side": riff(b"VP8X", b"\0\0\0\0" + b"\xff\xff\xff" * 2),
    "a JPEG of nothing": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "a JPEG of 65,500 pixels a side": bytes.fromhex("ffd8ffc0001108ffdcffdc03011100021101031101ffd9"),
    "a GIF": b"GIF89a\x10\0\x10\0\0\0\0;",
    "a TIFF": b"II*\0\x08\0\0\0\0\0",
    "a script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "a page before a PNG": b"<html><script>alert(1)</script>" + make_png(),
    "colours that are not there": png(8, 8, bytes(72), color=9),
    "half a WebP": riff(b"VP8L", b"/\x07\xc0\x01\0" + b"\xff" * 9),
    "a pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x02os\x94.",
    "nothing": b"",
}


def field_cases() -> Iterator[Case]:
    """Bodies that are refused for the field they are named by."""
    yield from ((name, {name: value}) for name in TEXTS for value in NO_TEXTS)
    yield from ((name, {name: value}) for name in NUMBERS for value in NO_NUMBERS)
    yield from ((name, {name: value}) for name in WHOLES for value in NO_WHOLES)
    yield from (("model", {"model": value}) for value in TRAVERSALS)
    yield from ((name, {name: "nonsense"}) for name in ("scheduler", "rng", "seeds", "emphasis", "prompt_syntax"))
    yield from (("optimizations", {"optimizations": value}) for value in ("nonsense", "gn,", "gn;pfs", ""))
    yield from ((side, {side: value}) for side in ("width", "height") for value in (0, 1, 15, 17, 65, 100_000))
    yield from (("steps", {"steps": value}) for value in (0, 1001, 2**31))
    yield from (("num_images", {"num_images": value}) for value in (0, 3))
    yield from (
        ("prompt", {"prompt": value}) for value in ("x" * 5001, "\ud800", f"(a:{10**50})", "<lora:../../x:1>", None)
    )
    yield from (("prompt", {"prompt": value}) for value in ("<hypernet:x:1>", "<lora:x:y>", "<lora:/etc/passwd>"))
    yield ("prompt", {"prompt": " AND ".join("a" * 100)})
    yield ("prompt", {"prompt": "BREAK " * 100})
    yield ("prompt", {"prompt": f"[{'|'.join(map(str, range(100)))}]" + "BREAK " * 20, "steps": 100})
    yield ("prompt", {"prompt": f"[{'BREAK ' * 100}:1.5]", "hires": 1})  # long in the second pass alone
    yield ("hires_steps", {"hires_steps": 3})
    yield ("hires_strength", {"hires_strength": 0.5})
    yield ("hires", {"hires": 5})
    yield ("eta", {"eta": 1.5})
    yield ("clip_skip", {"clip_skip": 99})
    yield ("strength", {"strength": 0.5})
    yield ("mask", {"mask": data_url(make_png())})
    yield from (
        (name, {name: "x"}) for name in ("lora", "vae", "embedding", "output", "device", "__class__", "lora_dir")
    )
    yield ("preview_every", {"preview_every": 10**9})


def picture_cases() -> Iterator[Case]:
    for name in ("image", "mask"):
        red = {"image": data_url(make_png())}
        yield from ((name, {**red, name: data_url(data)}) for data in BOMBS.values())
        for value in (1, True, [], {}, "", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x.png", "red.png"):
            yield (name, {**red, name: value})
        for value in ("data:image/png;base64,!!!!", "data:text/html;base64,AAAA", "data:image/png,AAAA", "data:"):
            yield (name, {**red, name: value})


FIELDS = [*field_cases(), *picture_cases()]

BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"prompt=a+fox",
    "a cut object": b'{"prompt": "a',
    "a list": b"[]",
    "a number": b"1",
    "a text": b'"x"',
    "null": b"null",
    "NaN": b'{"prompt": "x", "guidance_scale": NaN}',
    "Infinity": b'{"prompt": "x", "guidance_scale": Infinity}',
    "-Infinity": b'{"prompt": "x", "guidance_scale": -Infinity}',
    "a number over all floats": b'{"prompt": "x", "guidance_scale": 1e999}',
    "a number of 5000 digits": b'{"prompt": "x", "steps": ' + b"9" * 5000 + b"}",
    "deep lists": b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "no UTF-8": b'{"prompt": "\xff"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "a null character": b'{"prompt": "x"}\0',
    "two objects": b'{"prompt": "x"}{"prompt": "y"}',
    "half a character": b'{"prompt": "x", "negative_prompt": "\\ud800"}',
    "half a character in a name": b'{"prompt": "x", "\\udc00\\ud800": 1}',
    "half a character where nobody looks": b'{"prompt": "x", "user": ["\\ud800"]}',
    "a name that is not shown": b'{"prompt": "x", "prompt\\u202e": 1, "\\u0000": 1}',
    "packed": gzip.compress(b'{"prompt": "x"}'),
    "too much": b'{"prompt": "' + b"x" * LIMITS.max_body + b'"}',
}

HEADERS: dict[str, tuple[int, dict[str, str]]] = {
    "another host": (421, {"Host": "example.org"}),
    "a host that a stranger's DNS turns here": (421, {"Host": "127.0.0.1.example.org:7860"}),
    "another address": (421, {"Host": "192.0.2.1"}),
    "an empty host": (421, {"Host": ""}),
    "a host with a path": (421, {"Host": "localhost/x"}),
    "a host with a user": (421, {"Host": "localhost@example.org"}),
    "another origin": (403, {"Origin": "https://example.org"}),
    "an origin without a name": (403, {"Origin": "null"}),
    "an origin that begins alike": (403, {"Origin": "http://127.0.0.1.example.org"}),
    "another port's origin": (403, {"Origin": "http://127.0.0.1:1"}),
    "a length over all": (413, {"Content-Length": "99999999999"}),
}

LINE = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\n"
RAW: dict[str, bytes] = {
    "no HTTP": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    "no version": b"GET /\r\n\r\n",
    "another version": b"GET / HTTP/x.y\r\nHost: localhost\r\n\r\n",
    "huge headers": LINE + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": LINE + b"".join(b"X-%d: a\r\n" % index for index in range(20_000)) + b"\r\n",
    "a huge path": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "no host, as of old": b"GET /health HTTP/1.0\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: example.org\r\n\r\n",
    "two origins": LINE + b"Origin: http://localhost\r\nOrigin: http://example.org\r\nContent-Length: 0\r\n\r\n",
    "two lengths": LINE + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "a length below 0": LINE + b"Content-Length: -1\r\n\r\n",
    "a length that is none": LINE + b"Content-Length: x\r\n\r\n",
    "a chunk that is longer than it says": LINE + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}{}{}{}\r\n0\r\n\r\n",
    "a chunk of no length": LINE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk of 2^64 bytes": LINE + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
    "chunks that are too much": LINE
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * (LIMITS.max_body // 65536 + 2)
    + b"0\r\n\r\n",
    "another encoding": LINE + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a header without a name": b"GET /health HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n",
    "a header with a line break": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\r b\r\n\r\n",
    "a null character": b"GET /health\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a whole address": b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
}
HALF: dict[str, bytes] = {
    "half a line": b"POST /api/gen",
    "half the headers": LINE,
    "half the body": LINE + b'Content-Length: 100\r\n\r\n{"prompt":',
    "half a chunk": LINE + b"Transfer-Encoding: chunked\r\n\r\n50\r\n{",
    "nothing": b"",
}

PATHS = (
    "/nope",
    "/api",
    "/api/",
    "/static/../app.py",
    "/static/%2e%2e/app.py",
    "/static/..%2fapp.py",
    "/static//etc/passwd",
)
PATHS += ("/..", "/%00", "/static/%00", "/static/" + "a" * 5000, "/api/generate/x", "//", "/static", "/static/")
METHODS = (
    ("GET", "/api/generate"),
    ("GET", "/api/cancel"),
    ("POST", "/health"),
    ("PUT", "/api/generate"),
    ("DELETE", "/"),
)
METHODS += (("PATCH", "/api/inspect"), ("TRACE", "/"), ("OPTIONS", "/api/generate"), ("BREW", "/metrics"))


@pytest.fixture(scope="module", autouse=True)
def lives(client: Client) -> Iterator[None]:
    """After all of it the server makes the same picture as before, and its memory is nearly what it was."""
    before = client.generate(**SMALL)[-2][1]
    memory = resident_bytes(client)
    yield
    client.wait_for(lambda queue: queue == {"waiting": 0, "running": None})
    after = client.generate(**SMALL)[-2][1]
    assert picture_of(after["image"]).tobytes() == picture_of(before["image"]).tobytes()
    assert resident_bytes(client) < memory + 200_000_000


def resident_bytes(client: Client) -> float:
    lines = client.get("/metrics").body.decode().splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("shaderfusion_resident")), 0.0)


def test_there_are_many() -> None:
    assert sum(map(len, (FIELDS, BODIES, HEADERS, RAW, HALF, PATHS, METHODS))) >= 150


def require_sentence(answer: Answer, status: int | None = None) -> dict[str, Any]:
    assert 400 <= answer.status < 500, answer
    assert status is None or answer.status == status, answer
    assert set(answer.json) == {"error", "field"}, answer
    assert len(answer.json["error"]) > 10
    assert "Traceback" not in answer.json["error"]
    return answer.json


@pytest.mark.parametrize("name", sorted({name for name, _ in FIELDS}))
def test_fields(client: Client, name: str) -> None:
    for body in (body for field, body in FIELDS if field == name):
        sent = {**SMALL, **body}
        found = require_sentence(client.post("/api/generate", sent), 400)
        assert found["field"] == name, (body, found)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/api/generate", "/api/cancel", "/api/ablation", "/api/inspect"])
def test_bodies(client: Client, name: str, path: str) -> None:
    require_sentence(client.post(path, BODIES[name]), 413 if name == "too much" else 400)


@pytest.mark.parametrize("name", BOMBS)
def test_inspected_files(client: Client, name: str) -> None:
    """Of which no pixel is decoded; what is no picture is refused."""
    answer = client.post("/api/inspect", BOMBS[name])
    if answer.status != 200:
        require_sentence(answer, 400)
    assert answer.json.get("settings") is None


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize(("method", "path"), [("POST", "/api/generate"), ("GET", "/"), ("GET", "/health")])
def test_headers(client: Client, name: str, method: str, path: str) -> None:
    status, headers = HEADERS[name]
    require_sentence(client.ask(method, path, b"{}" if method == "POST" else None, headers), status)


@pytest.mark.parametrize("name", RAW)
def test_broken_http(client: Client, name: str) -> None:
    answer = client.send(RAW[name])
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer[:200]


@pytest.mark.parametrize("name", HALF)
def test_half_closed_sockets(client: Client, name: str) -> None:
    answer = client.send(HALF[name], shut=True)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:200]


def test_a_head_that_does_not_come_is_not_waited_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly it goes on; a job that lasts longer is not cut off by it."""
    monkeypatch.setattr("shaderfusion.server.running._HEAD_TIMEOUT_S", 0.3)
    with client.events(**LONG) as events, socket.create_connection(("127.0.0.1", client.port)) as slow:
        slow.settimeout(0.05)
        begun = time.monotonic()
        while slow_sends(slow, b"a"):
            assert time.monotonic() < begun + PATIENCE_S
        assert time.monotonic() > begun + 0.2
        later = time.monotonic() + 0.7
        assert next(name for name, _ in events if name == "step" and time.monotonic() > later)


def slow_sends(slow: socket.socket, data: bytes) -> bool:
    """Whether the server still takes more."""
    try:
        slow.sendall(data)
        return slow.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


@pytest.mark.parametrize("path", PATHS)
def test_paths(client: Client, path: str) -> None:
    require_sentence(client.get(path), 404)


@pytest.mark.parametrize(("method", "path"), METHODS)
def test_methods(client: Client, method: str, path: str) -> None:
    require_sentence(client.ask(method, path), 405)


@pytest.mark.parametrize("body", [{}, {"job": 1}, {"job": None}, {"job": ["x"]}, {"job": "x", "other": 1}])
def test_cancel(client: Client, body: dict[str, Any]) -> None:
    require_sentence(client.post("/api/cancel", body), 400)


@pytest.mark.parametrize(
    "body", [{"model": "../sd1"}, {"steps": 0}, {"steps": 10**9}, {"steps": "1"}, {"x": 1}, {"model": []}]
)
def test_ablation(client: Client, body: dict[str, Any]) -> None:
    require_sentence(client.post("/api/ablation", body), 400)


def test_a_key_is_asked_for(runtime: str) -> None:
    with serving(runtime, api_key="sécret", models=MODELS[:1]) as client:
        for path in ("/api/options", "/api/models", "/api/device", "/metrics", "/openapi.json", "/api/nope"):
            for key in ("", "Bearer", "Bearer x", "Basic sécret", "Bearer sécret2", "sécret", "bearer  sécret"):
                headers = {"Authorization": key.encode().decode("latin-1")} if key else {}
                assert client.get(path, **headers).status == 401
        assert client.get("/health").status == 200
        right = "Bearer sécret".encode().decode("latin-1")
        assert client.get("/api/models", Authorization=right).status == 200


def test_other_sites_only_where_they_are_allowed(runtime: str) -> None:
    with serving(runtime, origins=("https://example.org",), models=MODELS[:1]) as client:
        answer = client.get("/api/models", Origin="https://example.org")
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        assert client.get("/api/models", Origin="https://example.com").status == 403
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        assert client.ask("OPTIONS", "/api/generate", headers={"Origin": "https://example.org", **asked}).status == 200
        assert client.ask("OPTIONS", "/api/generate", headers={"Origin": "https://example.com", **asked}).status == 400


def test_refused_requests_are_counted(client: Client) -> None:
    client.get("/health", Host="example.org")
    text = client.get("/metrics").body.decode()
    assert all(f'shaderfusion_requests_refused_total{{status="{status}"}}' in text for status in (400, 404, 421))


def test_no_other_site_without(client: Client) -> None:
    assert "access-control-allow-origin" not in client.get("/api/models").headers


def test_whole_pictures_are_taken(client: Client) -> None:
    """Not everything is refused."""
    for data in (make_png(mode="RGBA"), make_png(mode="L"), png(8, 8, ZEROS)):  # of the last most is never unpacked
        assert client.generate(**SMALL, image=data_url(data), strength=0.5)[-1][0] == "done"
