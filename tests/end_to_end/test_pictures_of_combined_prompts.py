"""Prompts that AND combines, against diffusers' networks in float32 (golden/make_combined.py)."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER, load, model_folder

from shaderfusion.errors import InputError
from shaderfusion.families import open_model
from shaderfusion.families.family import TEXT_WEIGHTS
from shaderfusion.gpu.device import Device
from shaderfusion.hires import SecondPass
from shaderfusion.kernels.select import Kernels
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.request import make_request

IMAGE_BOUND = 2  # of 255
PHOTO = FOLDER / "pictures" / "photo.png"


@cache
def golden() -> dict[str, Any]:
    """What make_combined.py stored."""
    with np.load(FOLDER / "combined.npz") as arrays:
        return {**arrays, "facts": json.loads(str(arrays["facts"]))}


FACTS = golden()["facts"]


def options_of(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": case["prompts"],
        "negative_prompt": FACTS["negative"],
        "num_inference_steps": FACTS["steps"],
        "guidance_scale": FACTS["guidance_scale"],
        "num_images_per_prompt": case["num_images"],
        "seed": case["seed"],
        "prompt_syntax": "webui",
    }


@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("k", range(len(FACTS["cases"])), ids=lambda k: FACTS["cases"][k]["model"])
def test_images(device: Device, k: int, memory: Any) -> None:
    case, expected = FACTS["cases"][k], golden()[f"images_{k}"]
    model, kernels = open_model(model_folder(case["model"])), Kernels("f32", device.capabilities)
    with StableDiffusionPipeline(device, model, kernels, case["scheduler"], memory) as pipe:
        made = pipe(**options_of(case)).images
    assert np.abs(np.stack([np.asarray(image, int) for image in made]) - expected).max() <= IMAGE_BOUND


def test_one_program_for_all_weights(device: Device) -> None:
    """And parts that change from step to step, in a run from a picture with a mask, and its second pass."""
    pipe = load(device, "inpaint", "f32")
    options: dict[str, Any] = {"num_inference_steps": 2, "seed": 1, "prompt_syntax": "webui"}
    options |= {"image": PHOTO, "mask_image": FOLDER / "pictures" / "mask.png", "strength": 1.0}
    texts = ["a dog AND a fox:0.5", "a dog AND a fox:0.25", "a dog:0.5 AND [a fox::1]"]
    pictures = []
    for text in texts:
        request = make_request(pipe.model, text, **options)
        second = SecondPass(pipe.model, request, scale=1.5, num_inference_steps=2, strength=0.5)
        *_, last = pipe.run(request)
        assert last.images is not None
        *_, larger = pipe.run(second.request(last.images))
        assert larger.images is not None
        pictures += [last.images[0].tobytes(), larger.images[0].tobytes()]
    assert len(set(pictures)) == len(pictures)
    sizes = [size for size in pipe._engine._programs["unet"] if getattr(size, "weighted_texts", 0) == 2]
    assert len(sizes) == 2  # of both passes


def test_a_text_of_weight_0_is_left_out(device: Device) -> None:
    pipe = load(device, "sd1", "f32")
    options: dict[str, Any] = {"num_inference_steps": 2, "seed": 1, "prompt_syntax": "webui"}
    alone, with_none, doubled, halves = (
        np.asarray(pipe(text, **options).images[0], int)
        for text in ("a dog", "a dog AND a fox:0", "a dog:2", "a dog AND a dog")
    )
    assert np.abs(alone - with_none).max() <= 1
    assert np.abs(doubled - halves).max() <= 1
    assert np.abs(alone - doubled).max() > 5


def test_what_a_run_is_given() -> None:
    model = open_model(model_folder("sd1"))
    options: dict[str, Any] = {"num_images_per_prompt": 2, "prompt_syntax": "webui"}
    plain = make_request(model, ["a", "b"], **options)
    assert (plain.weights, plain.size.weighted_texts, plain.size.rows) == (None, 0, 8)
    combined = make_request(model, ["a AND b:2", "c"], **options, negative_prompt="d AND e:2")
    assert (combined.size.batch, combined.size.weighted_texts, combined.size.rows) == (4, 2, 12)
    np.testing.assert_array_equal(combined.weights, [[1, 1], [2, 0]])
    assert len(combined.prompts) == 3  # the negative one has no parts: AND is a word there
    assert combined.size.one_row.rows == 1
    assert TEXT_WEIGHTS in model.record(Kernels("f32"), combined.size, "low")["update"].inputs


@pytest.mark.parametrize(
    ("model", "prompt", "scale", "message"),
    [
        ("sd1", "a AND b", 1.0, r"prompt: AND, and a weight at the end such as :1.2, must come with a guidance_scale "),
        ("sd1", "at 16:9", 0.0, r"such as :1.2, must come with a guidance_scale \(=0\) above 1"),
        ("tiny_sd", "a AND b", 7.5, r"must come with a model that does not read guidance_scale itself"),
    ],
)
def test_without_guidance(model: str, prompt: str, scale: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_request(open_model(model_folder(model)), prompt, guidance_scale=scale, prompt_syntax="webui")
