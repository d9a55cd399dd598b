"""Text to image: text -> tokens -> embeddings -> latents -> image."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image

from shaderfusion.engine import Engine
from shaderfusion.errors import InputError
from shaderfusion.families import open_model
from shaderfusion.families.family import Family, RunSize
from shaderfusion.files import shown
from shaderfusion.gpu.device import Device, open_device
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.run import Progress, Request, Run, make_request
from shaderfusion.schedulers import make_schedule
from shaderfusion.tensor import DType
from shaderfusion.tuning_file import find_tuning

__all__ = ["PipelineOutput", "Progress", "StableDiffusionPipeline", "choose_dtype"]


@dataclass(frozen=True)
class PipelineOutput:
    """The images of one call, and the seed that makes them again."""

    images: list[Image.Image]
    seed: int


class StableDiffusionPipeline:
    """A model on a device. `from_pretrained` makes one; calling it makes images.

    As a context manager it closes itself. It may be called from several threads: runs are served a step at a time, in
    the order in which they ask.
    """

    def __init__(self, device: Device, model: Family, kernels: Kernels, scheduler: str | None = None) -> None:
        self.device = device
        self.model = model
        self.scheduler = scheduler
        self.dtype: DType = kernels.dtype
        self.tuning = kernels.tuning.source
        self._engine = Engine(device, model, kernels)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | Family,
        *,
        vae: str | Path | None = None,
        prediction_type: str | None = None,
        device: Device | int | str | None = None,
        runtime: str = "auto",
        dtype: DType | None = None,
        scheduler: str | None = None,
        optimizations: Optimizations | None = None,
        size: RunSize | None = None,
        tuning: str | Path = "auto",
    ) -> Self:
        """Opens the embedded model "emoji", a folder in diffusers' format or a .safetensors file on a device.

        vae and prediction_type are those of `families.open_model`; devices are those of `shaderfusion devices`.
        runtime is the WebGPU implementation, as of `gpu.device.open_device`, where the device is not an opened one.
        dtype is f16 where the GPU has it and f32 else; scheduler (schedulers.SCHEDULERS) is the model's own by default;
        optimizations are all by default. What a run of `size` needs is made ready, by default one picture of the
        model's own size with guidance. tuning is a file of `shaderfusion tune`, "auto", which takes the device's own
        file if there is one, or "off". Raises ModelError, DeviceError or InputError.
        """
        if dtype not in (None, "f16", "f32"):
            raise InputError(f"dtype (={dtype!r}) must be f16 or f32")
        with ThreadPoolExecutor(1) as beside:  # opening a device takes a while, most of it in the driver
            opening = beside.submit(
                lambda: device if isinstance(device, Device) else open_device(device, runtime=runtime)
            )
            found = _open(model, vae, prediction_type)
            make_schedule(found.scheduler_config, 1, scheduler)  # refuses what is not implemented before weights load
            found.tokenize([""])
            opened = opening.result()
        chosen = choose_dtype(opened, dtype)
        choices = find_tuning(tuning, opened.info, chosen)
        kernels = Kernels(chosen, opened.capabilities, optimizations or Optimizations(), choices)
        pipeline = cls(opened, found, kernels, scheduler)
        pipeline.load(found.run_size() if size is None else size)
        return pipeline

    @classmethod
    def from_single_file(cls, path: str | Path, **options: Any) -> Self:
        """`from_pretrained` of a .safetensors file with a whole model, by diffusers' name for it."""
        return cls.from_pretrained(path, **options)

    def __call__(self, prompt: str | Sequence[str] | None = None, **options: Any) -> PipelineOutput:
        """Images of a prompt, by all steps of `generate`, which has the options."""
        *_, last = self.generate(prompt, **options)
        return PipelineOutput(last.images or [], last.seed)

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        width: int | None = None,
        height: int | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        latents: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        pooled_prompt_embeds: Any = None,
        negative_pooled_prompt_embeds: Any = None,
    ) -> Run:
        """A run, which yields after each denoising step; stop iterating, or close it, to cancel.

        The options are diffusers'. prompt is a text or a list of them, of which each gets num_images_per_prompt images;
        width and height are in pixels, the model's own by default; a guidance_scale of at most 1 turns guidance off,
        and the negative prompt with it. The same seed gives the same noise as torch's CPU generator; latents, (B, C,
        height / 8, width / 8), take its place. prompt_embeds and negative_prompt_embeds, (prompts, L, C), take the
        place of texts, with SDXL together with pooled_prompt_embeds and negative_pooled_prompt_embeds, (prompts, C).
        InputError at once for an argument outside its rule, and DeviceLimitError for a size that the device cannot
        hold.
        """
        request = make_request(
            self.model,
            prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            width=width,
            height=height,
            num_images_per_prompt=num_images_per_prompt,
            seed=seed,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            scheduler=self.scheduler,
        )
        return self.run(request)

    def run(self, request: Request) -> Run:
        """A run of a request that `make_request` has checked against this pipeline's model."""
        self._engine.require_fits(request.size)
        return Run(self._engine, request)

    def load(self, size: RunSize) -> None:
        """Makes ready what a run of that size needs: weights, and compiled programs."""
        self._engine.load(size)

    def close(self) -> None:
        """Frees all memory of the device that the model takes; its runs end with a DeviceError."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _open(model: str | Path | Family, vae: str | Path | None, prediction_type: str | None) -> Family:
    if not isinstance(model, Family):
        return open_model(model, vae=vae, prediction_type=prediction_type)
    if vae is not None or prediction_type is not None:
        raise InputError(
            f"vae (={shown(vae)}) and prediction_type (={prediction_type}) must be left out for a model that is open "
            "already; give them to open_model"
        )
    return model


def choose_dtype(device: Device, dtype: DType | None) -> DType:
    """The dtype asked for, or the device's own; InputError where the device lacks it."""
    if dtype == "f16" and not device.info.has_f16:
        raise InputError(f"dtype (='f16') is not supported by device {device.info.name}; use f32")
    return dtype or device.info.default_dtype
