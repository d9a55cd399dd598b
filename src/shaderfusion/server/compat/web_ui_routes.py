"""The routes of the web UIs' API that clients use, `/sdapi/v1`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shaderfusion.server.compat import web_ui_answers as answers
from shaderfusion.server.compat.errors import renamed
from shaderfusion.server.compat.pictures import decode_base64
from shaderfusion.server.compat.web_ui_answers import Watched
from shaderfusion.server.compat.web_ui_fields import NAMES, WORDS, default_options, read_fields, read_options
from shaderfusion.server.refusal import RefusedError
from shaderfusion.server.safety import read_json
from shaderfusion.server.service import Service

__all__ = ["web_ui_routes"]

_NO_STORE = {"Cache-Control": "no-store"}


class WebUi:
    """What this API keeps between requests: its options, and the jobs that came by it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.options = default_options(service.models.default)
        self._jobs: dict[str, Watched] = {}

    async def generate(self, request: Request, *, has_image: bool) -> Response:
        """txt2img, or img2img."""
        body = await read_json(request)
        models, most = self._service.models.known, self._service.setup.limits.max_pixels
        with renamed(NAMES, WORDS):
            ticket = await self._service.generate(
                lambda: read_fields(body, self.options, models, most, has_image=has_image)
            )
            kind = "img2img" if has_image else "txt2img"
            job = self._jobs[ticket.job.id] = Watched(_address(request), time.strftime("%Y%m%d%H%M%S"), kind)
            try:
                pictures = [event.data for event in await self._service.collect(ticket, request, job.watch)]
            finally:
                del self._jobs[ticket.job.id]
        images = [picture["image"].partition(",")[2] for picture in pictures]
        shown = body if body.get("include_init_images") else {**body, "init_images": None, "mask": None}
        parameters = shown if has_image else body
        sends = body.get("send_images") is not False
        return JSONResponse(
            {"images": images if sends else [], "parameters": parameters, "info": answers.info(pictures)}
        )

    def set_options(self, body: Mapping[str, Any]) -> None:
        """Of this API. A model is loaded with the next picture."""
        self.options = read_options(body, self.options, self._service.models.known)

    def progress(self, *, has_image: bool) -> dict[str, Any]:
        """Of the job that runs, or else of the first that waits, of those that came by this API."""
        running = self._jobs.get(self._service.queue.running or "")
        job = running or next(iter(self._jobs.values()), None)
        return job.answer(has_image=has_image) if job else answers.idle()

    def interrupt(self, client: str) -> None:
        """Cancels the job that runs, where it is the client's own and came by this API: no other one's."""
        job_id = self._service.queue.running or ""
        job = self._jobs.get(job_id)
        if job and job.client == client:
            job.is_interrupted = True
            self._service.queue.cancel(job_id)


def web_ui_routes(service: Service) -> list[Route]:
    """All of them."""
    web_ui = WebUi(service)

    async def set_options(request: Request) -> Response:
        web_ui.set_options(await read_json(request))
        return JSONResponse(None)

    async def progress(request: Request) -> Response:
        skips = request.query_params.get("skip_current_image", "false").lower() in ("true", "1")
        return JSONResponse(web_ui.progress(has_image=not skips), headers=_NO_STORE)

    async def interrupt(request: Request) -> Response:
        web_ui.interrupt(_address(request))
        return JSONResponse({})

    async def png_info(request: Request) -> Response:
        body = await read_json(request)
        try:
            return JSONResponse(
                await service.in_thread(lambda: answers.png_info(decode_base64("image", body.get("image"))))
            )
        except RefusedError as refusal:
            raise RefusedError(refusal.status, str(refusal), "image") from None

    async def txt2img(request: Request) -> Response:
        return await web_ui.generate(request, has_image=False)

    async def img2img(request: Request) -> Response:
        return await web_ui.generate(request, has_image=True)

    lists: dict[str, Callable[[], Any]] = {
        "options": lambda: web_ui.options,
        "samplers": answers.samplers,
        "schedulers": answers.schedulers,
        "sd-models": lambda: answers.sd_models(service.models.known),
        "sd-vae": list,
        "upscalers": answers.upscalers,
        "latent-upscale-modes": list,
        "loras": lambda: answers.loras(service.setup.common.get("lora_dir")),
    }
    actions: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "txt2img": txt2img,
        "img2img": img2img,
        "options": set_options,
        "interrupt": interrupt,
        "png-info": png_info,
    }
    return [
        *(Route(f"/sdapi/v1/{name}", _get(make)) for name, make in lists.items()),
        *(Route(f"/sdapi/v1/{name}", action, methods=["POST"]) for name, action in actions.items()),
        Route("/sdapi/v1/progress", progress),
    ]


def _get(make: Callable[[], Any]) -> Callable[[Request], Awaitable[Response]]:
    async def get(_: Request) -> Response:
        return JSONResponse(make(), headers=_NO_STORE)

    return get


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
