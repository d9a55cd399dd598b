"""The golden models and what diffusers made of them, as make_models.py stored it."""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from shaderfusion.families import find_model, open_model
from shaderfusion.families.family import Conditioning
from shaderfusion.gpu.device import Device
from shaderfusion.kernels.select import Kernels
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.tensor import DType

FOLDER = Path(__file__).parent
FAMILIES = ("sdxl", "ssd", "tiny_sd", "inpaint")
"""SDXL, what was distilled from it and from SD 1.x, and one for inpainting."""
PADDED = ("ragged", "thirds", *FAMILIES)
"""Of channels and heads that are padded, on odd sides."""
TINY = ("sd1", "sd2", "odd", *PADDED)
NAMES = (*TINY, "emoji")


@dataclass(frozen=True)
class Run:
    """One run of diffusers' whole pipeline. Arrays are channels last."""

    scheduler: str
    call: dict[str, Any] = field(hash=False)
    """Arguments of the pipeline, the prompts among them."""
    latents: np.ndarray = field(hash=False)
    """After each call of the UNet: (calls, B, H, W, C)."""
    rounding: tuple[float, ...]
    """How far rounding to f32 alone took diffusers' latents, by call: the relative error to its float64 run."""
    images: np.ndarray = field(hash=False)
    """(B, height, width, 3) uint8."""
    pixels: np.ndarray | None = field(hash=False)
    """The images before rounding, in -1..1."""

    def __str__(self) -> str:
        shown = {key: self.call.get(key) for key in ("width", "height", "num_images_per_prompt", "guidance_scale")}
        short = "-".join(f"{key.split('_')[0]}{value}" for key, value in shown.items() if value is not None)
        return f"{self.scheduler}-{self.call['num_inference_steps']}steps-{short}"


@dataclass(frozen=True)
class Golden:
    """One model's reference. Arrays are channels last."""

    token_ids: np.ndarray
    conditioning: Conditioning
    """What the text encoders make of the prompts."""
    unet_latents_shape: tuple[int, ...]
    """As torch has it, (B, C, H, W), for the noise of `unet_seed`."""
    unet_seed: int
    unet_timesteps: tuple[float, ...]
    unet_guidance_scale: float
    """For a UNet that reads it."""
    unet_outputs: np.ndarray
    prompts: list[str]
    """The negative one and the prompt."""
    runs: tuple[Run, ...]


def model_folder(name: str) -> Path:
    """Of a golden model."""
    return find_model(name) if name == "emoji" else FOLDER / "models" / name


@cache
def golden(name: str) -> Golden:
    """The reference of a golden model."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        facts = json.loads(str(arrays["facts"]))
        prompts = {"negative_prompt": facts["prompts"][0], "prompt": facts["prompts"][1]}
        runs = tuple(
            Run(
                scheduler=case["scheduler"],
                call=prompts | case["call"],
                latents=np.moveaxis(arrays[f"latents_{k}"], 2, -1),
                rounding=tuple(case["rounding"]),
                images=arrays[f"images_{k}"],
                pixels=arrays[f"pixels_{k}"] if case["pixels"] else None,
            )
            for k, case in enumerate(facts["cases"])
        )
        return Golden(
            token_ids=arrays["token_ids"],
            conditioning={
                "embedding": arrays["embeddings"],
                **({"pooled": arrays["pooled"]} if "pooled" in arrays else {}),
            },
            unet_latents_shape=arrays["unet_outputs"].shape[1:],
            unet_seed=facts["unet_seed"],
            unet_timesteps=tuple(facts["unet_timesteps"]),
            unet_guidance_scale=facts.get("unet_guidance_scale", 1.0),
            unet_outputs=np.moveaxis(arrays["unet_outputs"], 2, -1),
            prompts=facts["prompts"],
            runs=runs,
        )


@cache
def load(device: Device, name: str, dtype: DType, kernels: Kernels | None = None) -> StableDiffusionPipeline:
    """A golden model on a device, once: models on one device share its compiled pipelines.

    Its kernels are those that suit the device, unless given.
    """
    kernels = kernels or Kernels(dtype, device.capabilities)
    return StableDiffusionPipeline(device, open_model(model_folder(name)), kernels)
