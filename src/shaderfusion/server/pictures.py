"""The job that makes pictures: what a client asked for, checked, and its steps as events."""

from __future__ import annotations

import argparse
import base64
import io
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from shaderfusion.hires import SecondPass
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.making import (
    Hashes,
    find_adapters,
    make_job_request,
    make_second_pass,
    make_settings,
    number_of,
    slug,
)
from shaderfusion.metadata.image_files import PARAMETERS, encode
from shaderfusion.metadata.settings import make_texts
from shaderfusion.output import write_whole
from shaderfusion.pipeline import Progress, StableDiffusionPipeline
from shaderfusion.request import Request
from shaderfusion.server.models import Models
from shaderfusion.server.queue import Job
from shaderfusion.server.refusal import RefusedError
from shaderfusion.server.setup import Setup

__all__ = ["Maker", "PictureWork", "data_url", "prepare"]

_PREVIEW_QUALITY = 80


@dataclass(eq=False)
class PictureWork:
    """Pictures that can be made: nothing is refused later but what only making them can show."""

    args: argparse.Namespace
    request: Request
    second: SecondPass | None
    optimizations: Optimizations
    adapters: Mapping[str, Path]
    """Files of those that the prompt names."""
    preview_every: int
    """Steps; 0 makes none."""

    @property
    def num_steps(self) -> int:
        """Calls of the denoiser."""
        return self.request.num_steps + (self.second.num_steps if self.second else 0)

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the pictures."""
        size = self.second.size if self.second else self.request.size
        return size.width_px, size.height_px


def prepare(
    models: Models, setup: Setup, args: argparse.Namespace, pictures: Mapping[str, Image], preview_every: int
) -> PictureWork:
    """Checks settings, and the pictures that belong to them, against the model; InputError and the like."""
    family = models.family(args.model)
    args.seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    optimizations = Optimizations.parse(args.optimizations)
    image, args.mask = pictures.get("image"), pictures.get("mask")
    request = make_job_request(family, args, image=image, mask_image=args.mask, strength=args.strength)
    args.lora = find_adapters(args, [request])
    second = make_second_pass(family, args, request)
    for size in (request.size, second.size if second else request.size):
        for side in (size.width_px, size.height_px):
            if side > setup.limits.max_side:
                raise RefusedError(
                    400, f"hires must make sides of at most {setup.limits.max_side} px, not {side}", "hires"
                )
        family.require_fits(size, models.device.capabilities, models.dtype, setup.common.get("memory", "normal"))
    for name, picture in pictures.items():
        setattr(args, name, f"{picture.width}x{picture.height} px")  # as the picture's file says it
    if request.source:
        args.strength = request.source.strength
    return PictureWork(args, request, second, optimizations, {path.stem: path for path, _ in args.lora}, preview_every)


class Maker:
    """Does the work, on the models' device. Only the worker calls it."""

    def __init__(self, models: Models, setup: Setup, made: Callable[[], None]) -> None:
        self._models = models
        self._output_dir = setup.output_dir
        self._made = made
        self.ms_per_step: float | None = None
        """Of the last job."""

    def make(self, work: PictureWork, job: Job) -> None:
        """Tells each step, and the pictures at last."""
        pipe = self._models.device_model(work.args.model, work.optimizations, work.request.size)
        self._models.load_adapters(work.adapters)
        job.go_on()
        width, height = work.size_px
        job.tell(
            "started",
            model=work.args.model,
            seed=work.request.seed,
            steps=work.num_steps,
            width=width,
            height=height,
            num_images=work.request.size.batch,
        )
        images = self._run(work, pipe, job)
        settings = make_settings(work.args, pipe, work.request, Hashes(work.args, pipe.model))
        for lora in settings.get("lora", ()):
            lora["file"] = Path(lora["file"]).name  # where the files are is no client's business
        for index, image in enumerate(images):
            own = settings | number_of(index + 1, len(images))
            texts = make_texts(own)
            data = encode(image, ".png", texts)
            self._keep(work, job, index, data)
            self._made()
            job.tell(
                "picture",
                index=index,
                image=data_url(data, "png"),
                settings=own,
                parameters=texts[PARAMETERS],
            )

    def _run(self, work: PictureWork, pipe: StableDiffusionPipeline, job: Job) -> Sequence[Image]:
        images: Sequence[Image] = ()
        started, first_s, done = time.perf_counter(), 0.0, 0
        for part, progress in _passes(work, pipe):
            done += 1
            now = time.perf_counter()
            first_s = first_s or now  # the first step reads prompts and may load weights
            left_s = None
            if done > 1:
                self.ms_per_step = 1e3 * (now - first_s) / (done - 1)
                left_s = (work.num_steps - done) * self.ms_per_step / 1e3
            job.tell("step", step=done, steps=work.num_steps, part=part, seconds_left=left_s)
            images = progress.images or ()
            if done < work.num_steps:
                job.go_on()
                if work.preview_every and done % work.preview_every == 0:
                    job.tell("preview", step=done, images=[_preview_url(image) for image in _preview(progress)])
        if done == 1:
            self.ms_per_step = 1e3 * (first_s - started)
        return images

    def _keep(self, work: PictureWork, job: Job, index: int, data: memoryview) -> None:
        if self._output_dir is not None:
            name = f"{slug(work.args.prompt)}-{work.request.seed}-{job.id}-{index + 1}.png"
            write_whole("--output-dir", self._output_dir / name, data)


def _passes(work: PictureWork, pipe: StableDiffusionPipeline) -> Iterator[tuple[str, Progress]]:
    """All steps, each with the part that it belongs to."""
    images: Sequence[Image] = ()
    with pipe.run(work.request) as run:
        for progress in run:
            images = progress.images or ()
            yield "denoise", progress
    if work.second:
        with pipe.run(work.second.request(images)) as run:
            for progress in run:
                yield "hires", progress


def _preview(progress: Progress) -> list[Image]:
    """What a step's latents show, by the cheapest way that there is."""
    return getattr(progress, "latent_preview", progress.preview)()


def _preview_url(image: Image) -> str:
    data = io.BytesIO()
    image.save(data, "jpeg", quality=_PREVIEW_QUALITY)
    return data_url(data.getbuffer(), "jpeg")


def data_url(data: bytes | memoryview, kind: str) -> str:
    """A file as a text that pages can show."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
