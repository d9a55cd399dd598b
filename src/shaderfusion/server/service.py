"""What every API stands on: a body becomes a job, a job's events become an answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread
from PIL.Image import Image
from starlette.requests import Request

import shaderfusion
from shaderfusion.errors import DeviceLostError, ShaderfusionError
from shaderfusion.files import cache_folder
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.making import fill_model_defaults
from shaderfusion.output import say
from shaderfusion.schedulers import SCHEDULERS
from shaderfusion.server.ablation import run_ablation
from shaderfusion.server.events import Channel, Event
from shaderfusion.server.inspect import inspect_picture
from shaderfusion.server.metrics import Metrics
from shaderfusion.server.models import Models
from shaderfusion.server.pictures import Maker, PictureWork, prepare
from shaderfusion.server.queue import STOPPING, CancelledError, Job, Queue
from shaderfusion.server.refusal import RefusedError, field_of
from shaderfusion.server.safety import read_picture
from shaderfusion.server.settings import KINDS, PICTURES, Fields, require_known
from shaderfusion.server.setup import Setup
from shaderfusion.weights.hub import is_hub_id

__all__ = ["GENERATE_FIELDS", "Service", "Ticket"]

T = TypeVar("T")

GENERATE_FIELDS = (*KINDS, *PICTURES, "preview_every")

_AT_ONCE = 1
"""Bodies that are checked at the same time: each may hold decoded pictures, and all share models and warnings."""
_MOST_ITERATIONS = 100


@dataclass(frozen=True)
class Ticket:
    """A job that was taken, and its events."""

    job: Job
    channel: Channel


class Service:
    """The queue, the models and the counts of one server."""

    def __init__(self, models: Models, fields: Fields, setup: Setup) -> None:
        self.models = models
        self.fields = fields
        self.setup = setup
        self.metrics = Metrics()
        self.maker = Maker(models, setup, self.metrics.made_picture)
        self.queue = Queue(setup.limits.max_queue, self.metrics.ended)
        self._checks = anyio.CapacityLimiter(_AT_ONCE)
        self._names = _names_of_paths(models, setup)

    # ------------------------------------------------------------------------------------------ jobs

    async def generate(self, read: Callable[[], Mapping[str, Any]]) -> Ticket:
        """Takes a job; RefusedError of what is against a rule.

        `read`, which may take a while, gives it by GENERATE_FIELDS. Of its pictures some may be decoded already.
        """
        self.queue.require_room()
        work = await self.in_thread(lambda: self._read(read()))
        return self._submit(partial(self.maker.make, work), GENERATE_FIELDS)

    async def ablation(self, body: Mapping[str, Any]) -> Ticket:
        """Takes a job that measures, for the same queue."""
        require_known(body, ("model", "steps"))
        model = self.models.default if body.get("model") is None else body["model"]
        steps = 5 if body.get("steps") is None else body["steps"]
        if not isinstance(model, str) or model not in self.models.known:
            raise RefusedError(400, f"model must be one of {', '.join(self.models.known)}", "model")
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= _MOST_ITERATIONS:
            raise RefusedError(400, f"steps must be a whole number from 1 to {_MOST_ITERATIONS}", "steps")
        return self._submit(partial(run_ablation, self.models, model, steps), ("model", "steps"))

    async def in_thread(self, function: Callable[[], T]) -> T:
        """What a function returns that takes a while; its errors of ours become a RefusedError."""
        try:
            return await anyio.to_thread.run_sync(function, limiter=self._checks)
        except RefusedError:
            raise
        except ShaderfusionError as error:
            raise RefusedError(400, self._told(error), field_of(error, GENERATE_FIELDS)) from None

    def _told(self, error: ShaderfusionError) -> str:
        """What clients hear of an error: not in which folder a file is, which the log says."""
        sentence = told = str(error)
        for path, name in self._names.items():
            told = told.replace(path, name)
        if told != sentence:
            say(f"a job failed: {sentence}")
        return told

    def _read(self, body: Mapping[str, Any]) -> PictureWork:
        require_known(body, GENERATE_FIELDS)
        args = self.fields.read(body, self.models.known, self.models.default)
        preview_every = 0 if body.get("preview_every") is None else body["preview_every"]
        if not isinstance(preview_every, int) or isinstance(preview_every, bool) or not 0 <= preview_every < 10_000:
            raise RefusedError(400, "preview_every must be a whole number of steps; 0 makes none", "preview_every")
        most = self.setup.limits.max_pixels
        given = {name: body[name] for name in PICTURES if body.get(name) is not None}
        pictures = {
            name: value if isinstance(value, Image) else read_picture(name, value, most)
            for name, value in given.items()
        }
        return prepare(self.models, self.setup, args, pictures, preview_every)

    def _submit(self, work: Callable[[Job], Mapping[str, Any] | None], fields: tuple[str, ...]) -> Ticket:
        channel = Channel(asyncio.get_running_loop())

        def on_device(job: Job) -> Mapping[str, Any] | None:
            try:
                return work(job)
            except CancelledError:
                raise
            except ShaderfusionError as error:
                if isinstance(error, DeviceLostError):
                    self.models.reopen()
                raise RefusedError(500, self._told(error), field_of(error, fields)) from None

        job = Job(on_device, channel.put, fields)
        self.queue.submit(job)
        return Ticket(job, channel)

    async def collect(
        self, ticket: Ticket, request: Request, watch: Callable[[Event], None] = lambda event: None
    ) -> list[Event]:
        """All pictures of a job, for answers that are no stream. RefusedError where it fails or is cancelled.

        A client that goes away cancels it. `watch` is given each event.
        """
        gone = asyncio.ensure_future(_disconnect(request))
        gone.add_done_callback(lambda _: self.queue.cancel(ticket.job.id))
        pictures: list[Event] = []
        try:
            async for event in ticket.channel:
                watch(event)
                match event.name:
                    case "picture":
                        pictures.append(event)
                    case "error":
                        error, field = event.data["error"], event.data["field"]
                        status = 503 if error == STOPPING else 500 if field is None else 400
                        raise RefusedError(status, error, field)
                    case "cancelled":
                        raise RefusedError(409, "the job was cancelled")
        finally:
            gone.cancel()
        return pictures

    # ------------------------------------------------------------------------------------------ what there is

    def options(self) -> dict[str, Any]:
        """What a page needs to ask for pictures."""
        limits = self.setup.limits
        args = self.fields.read({"prompt": ""}, self.models.known, self.models.default)
        fill_model_defaults(args, self.models.family(self.models.default))
        defaults = vars(args)
        return {
            "schedulers": list(SCHEDULERS),
            "spacings": {name: list(rule.spacings) for name, rule in SCHEDULERS.items()},
            "optimizations": [{"name": short, "about": about} for short, about in Optimizations.ABOUT.items()],
            "defaults": {name: defaults[name] for name in KINDS if name != "prompt"},
            "limits": {
                "width": [1, limits.max_side],
                "height": [1, limits.max_side],
                "steps": [1, limits.max_steps],
                "num_images": [1, limits.max_images],
                "queue": limits.max_queue,
            },
        }

    def list_models(self) -> dict[str, Any]:
        """All that a client may name."""
        current = self.models.current
        models = [
            {
                "name": name,
                "family": known.family,
                "width": known.width,
                "height": known.height,
                "steps": known.steps,
                "guidance_scale": known.guidance_scale,
                "loaded": name == current,
            }
            for name, known in self.models.known.items()
        ]
        return {"models": models, "current": current}

    def device(self) -> dict[str, Any]:
        """What pictures are made by, and what it does now."""
        info = self.models.device.info
        return {
            "name": info.name,
            "driver": info.driver,
            "runtime": info.runtime,
            "dtype": self.models.dtype,
            "memory": {"planned_bytes": self.models.planned_bytes, "used_bytes": self.models.used_bytes},
            "ms_per_step": self.maker.ms_per_step,
            "model": self.models.current,
            "queue": {"waiting": self.queue.waiting, "running": self.queue.running},
        }

    def metrics_text(self) -> str:
        """For Prometheus."""
        return self.metrics.text(
            {
                "queue_waiting": ("Jobs that wait.", self.queue.waiting),
                "queue_limit": ("Jobs that may wait.", self.setup.limits.max_queue),
                "running": ("Jobs that run.", int(self.queue.running is not None)),
                "device_memory_planned_bytes": ("By the model's plan.", self.models.planned_bytes),
                "device_memory_used_bytes": ("By the model that is there.", self.models.used_bytes),
            }
        )

    def inspect(self, data: bytes) -> dict[str, Any]:
        """What a picture's file says of how it was made."""
        folder = self.setup.common.get("lora_dir")
        adapters = [path.stem for path in folder.glob("*.safetensors")] if folder else []
        return inspect_picture(data, self.models.known, adapters)


def _names_of_paths(models: Models, setup: Setup) -> dict[str, str]:
    """What clients hear in the place of this machine's paths: longer ones first, as they may begin alike."""
    names = {str(known.path): name for name, known in models.known.items()}
    folders = [setup.output_dir, setup.common.get("lora_dir"), cache_folder(), Path(shaderfusion.__file__).parent]
    if any(map(is_hub_id, names)):
        from huggingface_hub import constants  # which takes a while

        folders.append(constants.HF_HUB_CACHE)
    names |= {f"{folder}{os.sep}": "" for folder in folders if folder is not None}
    return dict(sorted(names.items(), key=lambda item: -len(item[0])))


async def _disconnect(request: Request) -> None:
    """Until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
