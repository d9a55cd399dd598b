"""The routes of OpenAI's images API, `/v1`, and the pictures that it says the addresses of."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shaderfusion.errors import InputError
from shaderfusion.files import shown
from shaderfusion.metadata.image_files import encode, parse_texts, require_room
from shaderfusion.server.compat.errors import renamed
from shaderfusion.server.compat.openai_fields import (
    NAMES,
    Output,
    fields_of_form,
    read_fields,
    read_output,
    read_pictures,
)
from shaderfusion.server.compat.pictures import KeptPictures
from shaderfusion.server.refusal import RefusedError, field_name
from shaderfusion.server.safety import read_body, read_json
from shaderfusion.server.service import Service

__all__ = ["openai_routes"]

_NO_STORE = {"Cache-Control": "no-store"}
_IMAGE_FIELDS = ("image", "image[]")
_FILES = ("image", "mask")
_MOST_FIELDS = 64
_LONGEST_FIELD = 100_000


class OpenAi:
    """What this API keeps between requests: the pictures that were asked for by address."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.kept = KeptPictures()

    async def answer(self, request: Request, body: Mapping[str, Any], files: Mapping[str, bytes]) -> Response:
        """Of `generations`, or `edits` where there are files."""
        output = read_output(body)
        most = self._service.setup.limits.max_pixels

        def read() -> dict[str, Any]:
            own = read_fields(body)
            pictures = read_pictures(files["image"], files.get("mask"), most) if files else {}
            return pictures | {name: value for name, value in own.items() if value is not None}

        with renamed(NAMES):
            ticket = await self._service.generate(read)
            pictures = [event.data for event in await self._service.collect(ticket, request)]
        made = await self._service.in_thread(lambda: [_file(picture["image"], output) for picture in pictures])
        return JSONResponse(
            {
                "created": int(time.time()),
                "data": self._data(request, made, output),
                "output_format": output.kind,
                "seed": pictures[0]["settings"]["seed"],
            }
        )

    def _data(self, request: Request, files: Sequence[bytes], output: Output) -> list[dict[str, str]]:
        if not output.is_url:
            return [{"b64_json": base64.b64encode(data).decode()} for data in files]
        names = [self.kept.add(f"image/{output.kind}", f".{output.kind}", data) for data in files]
        return [{"url": str(request.url.replace(path=f"/pictures/{name}", query=""))} for name in names]

    def models(self) -> dict[str, Any]:
        """All that may be named."""
        known = self._service.models.known
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "shaderfusion"} for name in known]
        return {"object": "list", "data": data}


def openai_routes(service: Service) -> list[Route]:
    """All of them."""
    openai = OpenAi(service)

    async def generations(request: Request) -> Response:
        return await openai.answer(request, await read_json(request), {})

    async def edits(request: Request) -> Response:
        texts, files = await _read_form(request)
        return await openai.answer(request, fields_of_form(texts), files)

    async def models(_: Request) -> Response:
        return JSONResponse(openai.models(), headers=_NO_STORE)

    async def picture(request: Request) -> Response:
        found = openai.kept.get(request.path_params["name"])
        if found is None:
            raise RefusedError(404, "there is no such picture, or not any more; ask for b64_json to have it at once")
        return Response(found.data, media_type=found.kind, headers={"Cache-Control": "private, max-age=3600"})

    return [
        Route("/v1/images/generations", generations, methods=["POST"]),
        Route("/v1/images/edits", edits, methods=["POST"]),
        Route("/v1/models", models),
        Route("/pictures/{name}", picture),
    ]


def _file(data_url: str, output: Output) -> bytes:
    """A PNG as a file of the wanted kind, with the same texts."""
    data = base64.b64decode(data_url.partition(",")[2])
    if output.kind == "png":
        return data
    path = Path(f"picture.{output.kind}")
    texts = parse_texts(path, data)
    try:
        require_room("output_format", path, texts)
    except InputError as error:
        raise RefusedError(400, str(error), "output_format") from None
    return bytes(encode(Image.open(io.BytesIO(data)), path.suffix, texts, output.quality))


async def _read_form(request: Request) -> tuple[dict[str, str], dict[str, bytes]]:
    """Texts and files by name; RefusedError where it is no form, or an image is missing or one of several."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise RefusedError(400, f"Content-Type (={shown(kind)}) must be multipart/form-data, with a boundary")
    body = await read_body(request)  # within a time and a size; the form is read from it
    if not body.rstrip().endswith(b"--"):
        raise RefusedError(400, "the body must be a whole form, up to its last boundary")
    form = await _parse_form(request)
    try:
        return await _sort(form)
    finally:
        await form.close()


async def _sort(form: FormData) -> tuple[dict[str, str], dict[str, bytes]]:
    texts: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for given, value in form.multi_items():
        name = "image" if given in _IMAGE_FIELDS else given
        if name in texts or name in files:
            raise RefusedError(400, f"{shown(name)} must be given once: one picture is edited", field_name(name))
        if isinstance(value, UploadFile) != (name in _FILES):
            kind = "file" if name in _FILES else "text"
            raise RefusedError(400, f"{shown(name)} must be a {kind}", field_name(name))
        if isinstance(value, UploadFile):
            files[name] = await value.read()
        else:
            texts[name] = value
    if "image" not in files:
        raise RefusedError(400, "image must be given: a PNG, JPEG or WebP file to begin with", "image")
    return texts, files


async def _parse_form(request: Request) -> FormData:
    try:
        return await request.form(max_files=3, max_fields=_MOST_FIELDS, max_part_size=_LONGEST_FIELD)
    except Exception as error:  # of damaged forms the parser raises nearly anything
        reason = shown(getattr(error, "detail", None) or str(error) or type(error).__name__)
        raise RefusedError(400, f"the body must be a whole form ({reason})") from None
