"""Runs that begin with a picture, against diffusers in float32 (golden/make_pictures.py)."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER, load
from kernel_runner import relative_error

from shaderfusion.gpu.device import Device
from shaderfusion.images import read_source
from shaderfusion.pipeline import StableDiffusionPipeline

BOUND = 1e-4
IMAGE_BOUND = 2  # of 255
PICTURES = FOLDER / "pictures"


@cache
def golden() -> dict[str, Any]:
    """What make_pictures.py stored."""
    with np.load(FOLDER / "pictures.npz") as arrays:
        return {**arrays, "facts": json.loads(str(arrays["facts"]))}


CASES = golden()["facts"]["cases"]


def title(case: dict[str, Any]) -> str:
    """Of a test."""
    return f"{case['model']}-{case['scheduler']}-{case['call']['strength']}{'-mask' if case['mask'] else ''}"


def pipeline_of(device: Device, name: str, scheduler: str) -> StableDiffusionPipeline:
    """A golden model with that scheduler."""
    pipe = load(device, name, "f32")
    pipe.scheduler = scheduler
    return pipe


@pytest.mark.parametrize("name", [key.removeprefix("moments_") for key in golden() if key.startswith("moments_")])
def test_encoder(device: Device, name: str) -> None:
    pipe, expected = load(device, name, "f32"), golden()[f"moments_{name}"]
    f = pipe.model.scale_factor
    size = pipe.model.run_size(height=f * expected.shape[1], width=f * expected.shape[2])
    sides = {"height_px": size.height_px, "width_px": size.width_px}
    source = read_source(PICTURES / "photo.png", None, 1.0, **sides, batch=1)
    assert relative_error(pipe._engine.encode(source.pixels, size), expected) < BOUND


@pytest.mark.parametrize("k", range(len(CASES)), ids=lambda k: title(CASES[k]))
def test_images(device: Device, k: int) -> None:
    case, expected = CASES[k], golden()[f"images_{k}"]
    pipe = pipeline_of(device, case["model"], case["scheduler"])
    negative, prompt = golden()["facts"]["prompts"]
    mask = PICTURES / "mask.png" if case["mask"] else None
    made = pipe(prompt, negative_prompt=negative, image=PICTURES / "photo.png", mask_image=mask, **case["call"])
    images = np.stack([np.asarray(image) for image in made.images])
    assert np.abs(images.astype(int) - expected).max() <= IMAGE_BOUND
