"""What comes from outside, looked at before anything is done with it: who asks, how much it is, and pictures."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import io
import ipaddress
import json
import re
from collections.abc import Callable, Collection
from typing import Any

from PIL import Image
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shaderfusion.errors import ModelError
from shaderfusion.files import parse_json, shown
from shaderfusion.server.compat.errors import WEB_UI, refusal_response
from shaderfusion.server.refusal import RefusedError, field_name

__all__ = ["OPEN_PATHS", "Guard", "is_loopback", "read_body", "read_json", "read_picture"]

OPEN_PATHS = ("/", "/health", "/favicon.ico")
"""That ask for no key: the page asks its user for the key."""
_OPEN_BELOW = ("/static/", "/pictures/", "/export/")
"""The names of pictures are as hard to guess as a key. Exports are public: a browser that opens a page sends no key."""

FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URL = re.compile(r"data:image/(?:png|jpeg|webp);base64,")
_BODY_TIMEOUT_S = 30.0
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
}


class Guard:
    """Lets a request through that is for this server, from no other site's page, with the key, and not too large.

    A name that a stranger's DNS turns into this address is not among `hosts`, so that a page of theirs which calls us
    by it is refused; addresses cannot be turned, and are those that the connection really came to.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str],
        origins: Collection[str],
        api_key: str | None,
        max_body: int,
        refused: Callable[[int], None],
    ) -> None:
        """`refused` is told the status of each answer that is an error."""
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        self._origins = origins
        self._api_key = api_key
        self._max_body = max_body
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400:
                    self._refused(message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
        except RefusedError as refusal:
            response = refusal_response(scope["path"], refusal)
            await response(scope, receive, send_with_headers)
            return
        left = self._max_body

        async def receive_some() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large()
            return message

        await self._app(scope, receive_some, send_with_headers)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = _only(headers, "host")
        name = _host_name(host)
        server = scope.get("server")
        address = _address(name)
        if name not in self._hosts and not (server and address and address == _address(server[0])):
            raise RefusedError(421, f"Host (={shown(host)}) must be a name of this server; start it with --allow-host")
        origin = _only(headers, "origin") if "origin" in headers else None
        own = (f"http://{host}".lower(), f"https://{host}".lower())
        if origin is not None and origin.lower() not in own and origin not in self._origins:
            raise RefusedError(
                403, f"Origin (={shown(origin)}) must be this server's own; start it with --allow-origin"
            )
        if self._api_key is not None and not _is_open(scope["path"]):
            given = headers.get("authorization", "").encode("latin-1")
            if scope["path"].startswith(WEB_UI):
                given = _basic_as_bearer(given)
            if not hmac.compare_digest(given, f"Bearer {self._api_key}".encode()):
                raise RefusedError(
                    401,
                    "Authorization must be `Bearer KEY`, with the key that the server was started with",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 20 or int(length) > self._max_body:
            raise self._too_large()

    def _too_large(self) -> RefusedError:
        return RefusedError(
            413, f"the body must have at most {self._max_body:,} bytes, as this server is set (--max-body)"
        )


def _only(headers: Headers, name: str) -> str:
    values = headers.getlist(name)
    if len(values) != 1:
        raise RefusedError(400, f"{name.title()} must be given once, not {len(values)} times")
    return values[0]


def _host_name(host: str) -> str:
    """Without the port and the brackets of an address."""
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::\d+)?|([^:\[\]]+)(?::\d+)?", host)
    return (match[1] or match[2]).lower() if match else ""


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None of what is no address. IPv4's are those too under which a socket of IPv6 has them."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    found = _address(address)
    return found is not None and found.is_loopback


def _basic_as_bearer(given: bytes) -> bytes:
    """Clients of web UIs know no other way than a user's name, which may be any, and a password."""
    kind, _, rest = given.partition(b" ")
    if kind != b"Basic":
        return given
    try:
        return b"Bearer " + base64.b64decode(rest, validate=True).partition(b":")[2]
    except binascii.Error:
        return given


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(_OPEN_BELOW)


async def read_body(request: Request) -> bytes:
    """The whole body, whose size the guard bounds; RefusedError where it does not come."""
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            return await request.body()
    except TimeoutError:
        raise RefusedError(408, f"the body must come within {_BODY_TIMEOUT_S:g} s") from None


async def read_json(request: Request) -> dict[str, Any]:
    """The object that the body holds; RefusedError where it is none."""
    body = await read_body(request)
    try:
        found = parse_json("the body", body.decode("utf-8"), "send a JSON object")
    except UnicodeDecodeError:
        raise RefusedError(400, "the body must be UTF-8; send a JSON object") from None
    except ModelError as error:
        raise RefusedError(400, str(error)) from None
    if b"\\u" in body:  # which can write half of a character
        for name, value in found.items():
            try:
                json.dumps({name: value}, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                sentence = f"{shown(name)} must be whole Unicode, without lone surrogates"
                raise RefusedError(400, sentence, field_name(name)) from None
    return found


def read_picture(name: str, value: object, max_pixels: int) -> Image.Image:
    """The picture of a field, a data URL of a PNG, JPEG or WebP file, decoded; RefusedError where it is none.

    What it claims to be is looked at before anything is decoded.
    """
    start = _DATA_URL.match(value) if isinstance(value, str) else None
    if not start or not isinstance(value, str):
        sentence = f"{name} (={shown(value)}) must be a data URL of a PNG, JPEG or WebP file"
        raise RefusedError(400, f"{sentence}, such as data:image/png;base64,...", name)
    try:
        data = base64.b64decode(value[start.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(400, f"{name} must be a data URL whose base64 is whole", name) from None
    return decode_picture(name, data, max_pixels)


def decode_picture(name: str, data: bytes, max_pixels: int) -> Image.Image:
    """The picture of a file's bytes."""
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > max_pixels:
            raise _too_many(name, picture, max_pixels)
        picture.load()
    except RefusedError:
        raise
    except Image.DecompressionBombError:
        raise RefusedError(
            400, f"{name} must have at most {max_pixels:,} pixels; make it smaller before", name
        ) from None
    except Exception as error:  # of damaged files Pillow raises nearly anything
        reason = shown(str(error) or type(error).__name__)
        raise RefusedError(400, f"{name} must be a whole PNG, JPEG or WebP file ({reason})", name) from None
    return picture


def _too_many(name: str, picture: Image.Image, max_pixels: int) -> RefusedError:
    size = f"{picture.width}x{picture.height}"
    return RefusedError(
        400, f"{name} (of {size}) must have at most {max_pixels:,} pixels; make it smaller before", name
    )
