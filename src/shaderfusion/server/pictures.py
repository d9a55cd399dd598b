"""The job that makes pictures: what a client asked for, checked, and its steps as events."""

from __future__ import annotations

import argparse
import base64
import io
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from shaderfusion.families.family import Family
from shaderfusion.families.run_size import RunSize
from shaderfusion.hires import SecondPass, passes
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.making import (
    Hashes,
    fill_model_defaults,
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
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.progress import JobProgress
from shaderfusion.prompts.scheduled import ScheduledPrompts
from shaderfusion.request import Request
from shaderfusion.server.models import Models
from shaderfusion.server.queue import Job
from shaderfusion.server.refusal import RefusedError
from shaderfusion.server.setup import Setup

__all__ = ["Maker", "PictureWork", "data_url", "prepare"]

_PREVIEW_QUALITY = 80
_MOST_PARTS, _MOST_CHUNKS, _MOST_CHUNKS_OF_STEPS = 16, 32, 512
"""Of prompts; a chunk has as many tokens as the text encoder reads at once."""


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
    def sizes(self) -> list[RunSize]:
        """Of both."""
        return [self.request.size, *([self.second.size] if self.second else ())]

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the pictures."""
        size = self.sizes[-1]
        return size.width_px, size.height_px


def prepare(
    models: Models, setup: Setup, args: argparse.Namespace, pictures: Mapping[str, Image], preview_every: int
) -> PictureWork:
    """Checks settings, and the pictures that belong to them, against the model; InputError and the like."""
    family = models.family(args.model)
    fill_model_defaults(args, family)
    args.seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    optimizations = Optimizations.parse(args.optimizations)
    image, args.mask = pictures.get("image"), pictures.get("mask")
    request = make_job_request(family, args, image=image, mask_image=args.mask, strength=args.strength)
    _require_short(request, family)
    args.lora = find_adapters(args, [request])
    second = make_second_pass(family, args, request)
    if second:
        _require_short(second, family)
    most = setup.limits.max_side
    work = PictureWork(args, request, second, optimizations, {path.stem: path for path, _ in args.lora}, preview_every)
    for size in work.sizes:
        for name, side in (("width", size.width_px), ("height", size.height_px)):
            if side > most:
                raise RefusedError(400, f"{name} (={side}) must be at most {most}, as this server is set", name)
        family.require_fits(size, models.device.capabilities, models.dtype, models.memory)
    for name, picture in pictures.items():
        setattr(args, name, f"{picture.width}x{picture.height} px")  # as the picture's file says it
    if request.source:
        args.strength = request.source.strength
    return work


def _require_short(request: Request | SecondPass, family: Family) -> None:
    """RefusedError of prompts that a few letters make large: each part is a row of the denoiser, each token a row of
    its attention, and each text of a step is read before the first one, in one go."""
    num_tokens = family.tokens_shape[-1]
    scheduled = [each for each in request.prompts if isinstance(each, ScheduledPrompts)]
    num_chunks = sum(each.ids.size for each in scheduled) // math.prod(family.tokens_shape)
    for what, found, most in (
        ("parts joined by AND", len(request.prompts) - 1, _MOST_PARTS),
        ("tokens", request.size.num_tokens, _MOST_CHUNKS * num_tokens),
        ("tokens in all its steps", num_chunks * num_tokens, _MOST_CHUNKS_OF_STEPS * num_tokens),
    ):
        if found > most:
            raise RefusedError(400, f"prompt must have at most {most:,} {what}, not {found:,}", "prompt")


class Maker:
    """Does the work, on the models' device. Only the worker calls it."""

    def __init__(self, models: Models, setup: Setup, made: Callable[[], None]) -> None:
        self._models = models
        self._output_dir = setup.output_dir
        self._made = made
        self._beside = ThreadPoolExecutor(1)
        self.ms_per_step: float | None = None
        """Of the last run that had several."""

    def make(self, work: PictureWork, job: Job) -> None:
        """Tells each step, and the pictures at last."""
        pipe = self._models.device_model(work.args.model, work.optimizations, work.sizes)
        self._models.load_adapters(work.adapters)
        job.go_on()
        width, height = work.size_px
        job.tell(
            "started",
            model=work.args.model,
            seed=work.request.seed,
            steps=sum(stage.num_steps for stage, _ in passes(work.request, work.second)),
            width=width,
            height=height,
            num_images=work.request.size.batch,
        )
        hashing = self._beside.submit(Hashes, work.args, pipe.model)  # of large files, which takes a while once
        images = self._run(work, pipe, job)
        settings = make_settings(work.args, pipe, work.request, hashing.result())
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
        runs = passes(work.request, work.second)
        progress = JobProgress([stage for stage, _ in runs])

        def tell() -> None:
            left_s = progress.seconds_left
            job.tell("step", step=progress.step, steps=progress.num_steps, part=progress.part, seconds_left=left_s)

        progress.watch = tell
        for index, (_, make_request) in enumerate(runs):
            progress.start(index)
            with pipe.run(make_request(images)) as run:
                run.watch = progress.begin
                for step in run:
                    progress.advance()
                    images = step.images or ()
                    if not images:
                        job.go_on()
                        if work.preview_every and step.step % work.preview_every == 0:
                            pictures = [_preview_url(image) for image in step.quick_preview()]
                            job.tell("preview", step=progress.step, images=pictures)
            if progress.step_s is not None:
                self.ms_per_step = 1e3 * progress.step_s
        return images

    def _keep(self, work: PictureWork, job: Job, index: int, data: memoryview) -> None:
        if self._output_dir is not None:
            name = f"{slug(work.args.prompt)}-{work.request.seed}-{job.id}-{index + 1}.png"
            write_whole("--output-dir", self._output_dir / name, data)


def _preview_url(image: Image) -> str:
    data = io.BytesIO()
    image.save(data, "jpeg", quality=_PREVIEW_QUALITY)
    return data_url(data.getbuffer(), "jpeg")


def data_url(data: bytes | memoryview, kind: str) -> str:
    """A file as a text that pages can show."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
