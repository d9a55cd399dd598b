"""Text to image: text -> tokens -> embeddings -> latents -> image."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shaderfusion.config import SchedulerConfig
from shaderfusion.engine import Engine, Sources, load_all_weights
from shaderfusion.errors import InputError, ModelError
from shaderfusion.gpu.device import Device, open_device
from shaderfusion.kernels.select import Kernels, Optimizations
from shaderfusion.models.stable_diffusion import COMPONENTS, ModelConfig, find_model
from shaderfusion.random import randn
from shaderfusion.schedulers import make_schedule
from shaderfusion.tensor import DType
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.weights.checkpoint import Checkpoint
from shaderfusion.weights.store import WeightStore

__all__ = ["PipelineOutput", "Progress", "StableDiffusionPipeline", "choose_dtype", "make_kernels"]


@dataclass(frozen=True)
class PipelineOutput:
    """The images of one call, and the seed that makes them again."""

    images: list[Image.Image]
    seed: int


@dataclass(frozen=True)
class Progress:
    """After denoising step `step` of `num_steps`, counted from 1; the last one carries the images."""

    step: int
    num_steps: int
    seed: int
    preview: Callable[[], list[Image.Image]]
    """Decodes the latents as they are now: takes as long as a final image."""
    images: list[Image.Image] | None = None


class StableDiffusionPipeline:
    """A model on a device. `from_pretrained` makes one; calling it makes images."""

    def __init__(
        self,
        device: Device,
        kernels: Kernels,
        tokenizer: Tokenizer,
        config: ModelConfig,
        scheduler_config: SchedulerConfig,
        weights: WeightStore,
        sources: Sources,
        scheduler: str | None = None,
    ) -> None:
        self.device = device
        self.dtype: DType = kernels.dtype
        self.tokenizer = tokenizer
        self.config = config
        self.scheduler_config = scheduler_config
        self.scheduler = scheduler
        self._kernels = kernels
        self._weights = weights
        self._sources = sources
        self._engine_of_size: tuple[tuple[int, int, int, bool], Engine] | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        device: int | str | None = None,
        dtype: DType | None = None,
        scheduler: str | None = None,
        optimizations: Optimizations | None = None,
    ) -> StableDiffusionPipeline:
        """Opens the embedded model "emoji", or a folder in diffusers' format, on a device (`shaderfusion devices`).

        dtype is f16 where the GPU has it and f32 else; scheduler ("ddim", "pndm", "euler") is the model's own by
        default; optimizations are all by default. Raises ModelError, DeviceError or InputError.
        """
        if dtype not in (None, "f16", "f32"):
            raise InputError(f"dtype (={dtype!r}) must be f16 or f32")
        folder = find_model(model)
        config = ModelConfig.from_folder(folder)
        scheduler_config = SchedulerConfig.from_json(folder / "scheduler")
        make_schedule(scheduler_config, 1, scheduler)  # refuses what is not implemented before anything is loaded
        tokenizer = Tokenizer.from_folder(folder / "tokenizer")
        if tokenizer.max_length != config.text_encoder.max_position_embeddings:
            raise ModelError(
                f"{folder}: the tokenizer's model_max_length (={tokenizer.max_length}) must equal text_encoder's "
                f"max_position_embeddings (={config.text_encoder.max_position_embeddings})"
            )
        opened = open_device(device)
        dtype = choose_dtype(opened, dtype)
        kernels = make_kernels(opened, dtype, optimizations)
        sources = {name: Checkpoint(folder / name) for name in COMPONENTS}
        weights = load_all_weights(opened, config, kernels, sources)
        return cls(opened, kernels, tokenizer, config, scheduler_config, weights, sources, scheduler)

    def __call__(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        width: int | None = None,
        height: int | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
    ) -> PipelineOutput:
        """Images of a prompt, with diffusers' meanings; see `generate` to watch them appear."""
        *_, last = self.generate(
            prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            width=width,
            height=height,
            num_images_per_prompt=num_images_per_prompt,
            seed=seed,
        )
        return PipelineOutput(last.images or [], last.seed)

    def generate(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        width: int | None = None,
        height: int | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
    ) -> Iterator[Progress]:
        """Yields after each denoising step; stop iterating to cancel.

        width and height are in pixels, the model's own by default. A guidance_scale of at most 1 turns guidance off,
        and the negative prompt with it. The same seed gives the same noise as torch's CPU generator.
        """
        B = _require_count("num_images_per_prompt", num_images_per_prompt)
        width_px, height_px = self.config.require_size("width", width), self.config.require_size("height", height)
        scale = _require_scale(guidance_scale)
        schedule = make_schedule(self.scheduler_config, num_inference_steps, self.scheduler)
        seed = secrets.randbelow(2**32) if seed is None else seed
        guided = scale > 1
        f = self.config.vae.scale_factor
        noise_shape = (B, self.config.unet.in_channels, height_px // f, width_px // f)

        token_ids = self.tokenizer([negative_prompt, prompt] if guided else [prompt])
        engine = self._engine(B, height_px, width_px, guided)  # refuses sizes that the device cannot hold
        noise = randn(noise_shape, seed).transpose(0, 2, 3, 1)  # torch's order, then channels last
        embeddings = engine.encode(token_ids)
        scales = (*schedule.input_scales, 1.0)
        engine.start(np.repeat(embeddings, B, axis=0), schedule.init_noise_sigma * noise, scales[0])

        def decode() -> list[Image.Image]:
            return _to_images(engine.decode())

        num_steps = len(schedule.updates)
        for i, (timestep, update) in enumerate(zip(schedule.timesteps, schedule.updates, strict=True)):
            engine.step(timestep, update, guidance_scale=scale, next_input_scale=scales[i + 1])
            yield Progress(i + 1, num_steps, seed, decode, decode() if i + 1 == num_steps else None)

    def _engine(self, batch: int, height_px: int, width_px: int, guidance: bool) -> Engine:
        """The programs for a size, built on first use; only the last size is kept, so that memory does not grow."""
        size = (batch, height_px, width_px, guidance)
        if self._engine_of_size is None or self._engine_of_size[0] != size:
            if self._engine_of_size:
                self._engine_of_size[1].close()
            self._engine_of_size = None  # frees its memory before the next engine takes its own
            engine = Engine(
                self.device,
                self.config,
                self._kernels,
                self._weights,
                self._sources,
                batch=batch,
                height_px=height_px,
                width_px=width_px,
                guidance=guidance,
            )
            self._engine_of_size = (size, engine)
        return self._engine_of_size[1]


def choose_dtype(device: Device, dtype: DType | None) -> DType:
    """The dtype asked for, or the device's own; InputError where the device lacks it."""
    if dtype == "f16" and not device.info.has_f16:
        raise InputError(f"dtype (='f16') is not supported by device {device.info.name}; use f32")
    return dtype or device.info.default_dtype


def make_kernels(device: Device, dtype: DType, optimizations: Optimizations | None = None) -> Kernels:
    """The kernels that suit a device, with all optimizations by default."""
    lanes = device.info.kind == "CPU" and device.has("subgroup")
    return Kernels(
        dtype,
        lanes=lanes,
        int64=device.has("shader-int64"),
        max_binding_bytes=device.max_binding_bytes,
        max_invocations=device.limits["max-compute-invocations-per-workgroup"],
        optimizations=optimizations or Optimizations(),
    )


def _require_count(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} (={value!r}) must be a whole number of at least 1")
    return value


def _require_scale(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise InputError(f"guidance_scale (={value!r}) must be a number of at least 0; 1 or less turns guidance off")
    return float(value)


def _to_images(pixels: np.ndarray) -> list[Image.Image]:
    """Pictures of values in -1..1, (B, height, width, 3)."""
    levels = np.clip(np.round(pixels * 127.5 + 127.5), 0, 255).astype(np.uint8)
    return [Image.fromarray(image) for image in levels]
