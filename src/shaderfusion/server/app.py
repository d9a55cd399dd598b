"""The own API's routes, and the application that serves every API."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

import shaderfusion
from shaderfusion.files import is_file, is_folder
from shaderfusion.server.compat.errors import refusal_response
from shaderfusion.server.compat.openai_routes import openai_routes
from shaderfusion.server.compat.web_ui_routes import web_ui_routes
from shaderfusion.server.events import stream
from shaderfusion.server.exports import export_routes
from shaderfusion.server.openapi import all_paths, document
from shaderfusion.server.refusal import RefusedError
from shaderfusion.server.safety import Guard, read_body, read_json
from shaderfusion.server.service import Service, Ticket
from shaderfusion.server.settings import require_known

__all__ = ["make_app"]

PAGE = Path(__file__).parent / "page"
_NO_STORE = {"Cache-Control": "no-store"}


def make_app(
    service: Service,
    *,
    hosts: Collection[str],
    origins: Sequence[str] = (),
    api_key: str | None = None,
    exports: Mapping[str, Path] | None = None,
) -> Starlette:
    """All routes behind the guard. `hosts` are the names by which clients may call the server; `exports` are folders of
    `export web`, by the names that they are served under."""
    described = document(all_paths(service.fields, service.setup.limits), asks_for_key=api_key is not None)

    async def openapi(_: Request) -> Response:
        return JSONResponse(described)

    guard = Middleware(
        Guard,
        hosts=hosts,
        origins=origins,
        api_key=api_key,
        max_body=service.setup.limits.max_body,
        refused=service.metrics.refused,
    )
    cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    app = Starlette(
        routes=[
            *_routes(service),
            *web_ui_routes(service),
            *openai_routes(service),
            *export_routes(exports or {}),
            Route("/openapi.json", openapi),
        ],
        middleware=[cors, guard] if origins else [guard],
        exception_handlers={
            RefusedError: _refused,
            HTTPException: _not_found,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False
    return app


def _routes(service: Service) -> list[BaseRoute]:
    """Those of the own API, and the page."""

    async def options(_: Request) -> Response:
        found = await service.in_thread(service.options)
        return JSONResponse({**found, "version": shaderfusion.__version__}, headers=_NO_STORE)

    async def models(_: Request) -> Response:
        return JSONResponse(service.list_models(), headers=_NO_STORE)

    async def device(_: Request) -> Response:
        return JSONResponse(service.device(), headers=_NO_STORE)

    async def generate(request: Request) -> Response:
        body = await read_json(request)
        ticket = await service.generate(lambda: body)
        if "application/json" in request.headers.get("accept", ""):
            pictures = await service.collect(ticket, request)
            return JSONResponse({"job": ticket.job.id, "pictures": [event.data for event in pictures]})
        return _Events(service, ticket)

    async def ablation(request: Request) -> Response:
        return _Events(service, await service.ablation(await read_json(request)))

    async def cancel(request: Request) -> Response:
        body = await read_json(request)
        require_known(body, ("job",))
        if not isinstance(body.get("job"), str):
            raise RefusedError(400, "job must be the id of a job, as its events have it", "job")
        return JSONResponse({"cancelled": service.queue.cancel(body["job"])})

    async def inspect(request: Request) -> Response:
        data = await read_body(request)
        return JSONResponse(await service.in_thread(lambda: service.inspect(data)))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"}, headers=_NO_STORE)

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(service.metrics_text(), headers=_NO_STORE)

    async def page(_: Request) -> Response:
        if not is_file(PAGE / "index.html"):
            raise RefusedError(404, "this installation has no page; /openapi.json says what the API has")
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    return [
        Route("/", page),
        *([Mount("/static", StaticFiles(directory=PAGE))] if is_folder(PAGE) else []),
        Route("/api/options", options),
        Route("/api/models", models),
        Route("/api/device", device),
        Route("/api/generate", generate, methods=["POST"]),
        Route("/api/cancel", cancel, methods=["POST"]),
        Route("/api/inspect", inspect, methods=["POST"]),
        Route("/api/ablation", ablation, methods=["POST"]),
        Route("/health", health),
        Route("/metrics", metrics),
    ]


class _Events(StreamingResponse):
    """A job's events as they come; a client that goes away, even before the first one, cancels it."""

    def __init__(self, service: Service, ticket: Ticket) -> None:
        headers = {**_NO_STORE, "X-Accel-Buffering": "no"}
        super().__init__(stream(ticket.channel), media_type="text/event-stream", headers=headers)
        self._cancel = partial(service.queue.cancel, ticket.job.id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancel()  # a job that has ended is not there any more


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refusal_response(request.url.path, error)


async def _not_found(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: a path or a method that there is not."""
    assert isinstance(error, HTTPException)
    sentences = {404: "there is nothing at this path", 405: f"{request.method} is no method of this path"}
    sentence = sentences.get(error.status_code, error.detail)
    return await _refused(
        request, RefusedError(error.status_code, f"{sentence}; /openapi.json says what there is", None, error.headers)
    )


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads it."""
    return Response(status_code=400)


async def _failed(request: Request, error: Exception) -> Response:
    return refusal_response(request.url.path, RefusedError(500, "the server failed; its log says where"))
