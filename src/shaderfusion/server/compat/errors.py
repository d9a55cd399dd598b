"""Refusals as each API's clients show them: ours, the web UIs', and OpenAI's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.responses import JSONResponse

from shaderfusion.files import shown
from shaderfusion.server.refusal import RefusedError, field_name

__all__ = ["OPENAI", "WEB_UI", "FieldError", "refusal_response", "renamed"]

WEB_UI, OPENAI = "/sdapi/", "/v1/"
"""Where the paths of the APIs of others begin."""

_CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}
_NO_RETRY = {"x-should-retry": "false"}


class FieldError(RefusedError):
    """A value of a field, which is named as the client names it."""

    def __init__(self, name: str, value: object, about: str) -> None:
        said = field_name(name)
        super().__init__(400, f"{said or shown(name)} (={shown(value)}) is refused: {about}", said)


def refusal_response(path: str, refusal: RefusedError) -> JSONResponse:
    """The answer to a request of that path."""
    if path.startswith(WEB_UI):
        return _web_ui(refusal)
    if path.startswith(OPENAI):
        return _openai(refusal)
    return JSONResponse(refusal.as_dict(), refusal.status, refusal.headers)


def _web_ui(refusal: RefusedError) -> JSONResponse:
    """Clients show `detail`, or all of the text. A value against its rule is 422 there."""
    sentence = str(refusal)
    body = {"error": sentence, "detail": sentence, "errors": "", "field": refusal.field}
    return JSONResponse(body, 422 if refusal.status == 400 else refusal.status, refusal.headers)


def _openai(refusal: RefusedError) -> JSONResponse:
    status = refusal.status
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    code = "model_not_found" if refusal.field == "model" else _CODES.get(status)
    body: dict[str, Any] = {"message": str(refusal), "type": kind, "param": refusal.field, "code": code}
    # A job that was cancelled is not wanted any more; OpenAI's own client would ask again after 409.
    headers = {**(refusal.headers or {}), **(_NO_RETRY if status == 409 else {})}
    return JSONResponse({"error": body}, status, headers)


@contextmanager
def renamed(names: Mapping[str, str], words: Mapping[str, str] | None = None) -> Iterator[None]:
    """A refusal in the block names fields as the client does: `names` are theirs by ours.

    `words`, by ours too, stand for those whose values are not the client's.
    """
    try:
        yield
    except RefusedError as refusal:
        own = refusal.field
        if own is None or isinstance(refusal, FieldError):
            raise
        sentence = str(refusal)
        if sentence.startswith(own):
            sentence = {**names, **(words or {})}.get(own, own) + sentence.removeprefix(own)
        raise RefusedError(refusal.status, sentence, names.get(own, own), refusal.headers) from None
