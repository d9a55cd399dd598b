"""Runs that begin with a picture, against diffusers in float32 (golden/make_pictures.py)."""

import json
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER, load, model_folder
from kernel_runner import relative_error
from PIL import Image

from shaderfusion.config import TinyVaeConfig, VaeConfig
from shaderfusion.errors import InputError, ModelError
from shaderfusion.families import open_model
from shaderfusion.families.autoencoder import any_encoder_graph
from shaderfusion.gpu.device import Device
from shaderfusion.hires import SecondPass
from shaderfusion.images import read_source
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.vae import decoder_graph
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.request import make_request

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
def test_images(device: Device, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case, expected = CASES[k], golden()[f"images_{k}"]
    pipe = load(device, case["model"], "f32")
    monkeypatch.setattr(pipe, "scheduler", case["scheduler"])
    negative, prompt = golden()["facts"]["prompts"]
    mask = PICTURES / "mask.png" if case["mask"] else None
    made = pipe(prompt, negative_prompt=negative, image=PICTURES / "photo.png", mask_image=mask, **case["call"])
    images = np.stack([np.asarray(image) for image in made.images])
    assert np.abs(images.astype(int) - expected).max() <= IMAGE_BOUND


def test_the_encoder_is_loaded_when_it_is_used(device: Device) -> None:
    with StableDiffusionPipeline(device, open_model(model_folder("sd1")), Kernels("f32", device.capabilities)) as pipe:
        options: dict[str, Any] = {"num_inference_steps": 2, "seed": 1}
        pipe("a dog", **options)
        assert not pipe._engine._programs["vae_encoder"]
        num_weights = len(pipe._engine._weights._loaded)
        pipe("a dog", image=PICTURES / "photo.png", **options)
        assert len(pipe._engine._programs["vae_encoder"]) == 1
        assert len(pipe._engine._weights._loaded) > num_weights


@pytest.mark.parametrize("k", [9, 12, 17], ids=lambda k: title(CASES[k]))
def test_low_memory(device: Device, k: int) -> None:
    case, expected = CASES[k], golden()[f"images_{k}"]
    negative, prompt = golden()["facts"]["prompts"]
    model, kernels = open_model(model_folder(case["model"])), Kernels("f32", device.capabilities)
    with StableDiffusionPipeline(device, model, kernels, case["scheduler"], "low") as pipe:
        mask = PICTURES / "mask.png" if case["mask"] else None
        made = pipe(prompt, negative_prompt=negative, image=PICTURES / "photo.png", mask_image=mask, **case["call"])
        on_device = {name for name, programs in pipe._engine._programs.items() if programs}
    images = np.stack([np.asarray(image) for image in made.images])
    assert np.abs(images.astype(int) - expected).max() <= IMAGE_BOUND
    assert on_device == {"vae"}


def test_f16(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a picture of 4 x 8 x 8 latents, where rounding shows most."""
    if not device.info.has_f16:
        pytest.skip("the device has no f16")
    case = CASES[13]
    pipe = load(device, case["model"], "f16")
    monkeypatch.setattr(pipe, "scheduler", case["scheduler"])  # others share the pipeline
    negative, prompt = golden()["facts"]["prompts"]
    options: dict[str, Any] = {"image": PICTURES / "photo.png", "mask_image": PICTURES / "mask.png", **case["call"]}
    (image,) = pipe(prompt, negative_prompt=negative, **options).images
    assert np.sqrt(np.mean((np.asarray(image, float) - golden()["images_13"][0]) ** 2)) < 4


def test_masked_runs_in_turn_are_as_alone(device: Device) -> None:
    """Another run's steps come between, and a preview; no step of a masked run is submitted ahead."""
    pipe = pipeline_of(device, "sd1", "pndm")
    options: dict[str, Any] = {"image": PICTURES / "photo.png", "num_inference_steps": 4}
    masked: dict[str, Any] = options | {"mask_image": PICTURES / "mask.png", "seed": 1, "strength": 1.0}
    plain: dict[str, Any] = options | {"seed": 2}
    alone = [pipe("a dog", **each).images[0].tobytes() for each in (masked, plain)]
    runs = [pipe.generate("a dog", **each) for each in (masked, plain)]
    made: list[bytes] = [b"", b""]
    for pair in zip_longest(*runs):
        for i, progress in enumerate(pair):
            if progress is not None:
                progress.preview()
                made[i] = progress.images[0].tobytes() if progress.images else b""
    assert made == alone


def test_a_mask_of_white_keeps_nothing_and_one_of_black_keeps_all(device: Device) -> None:
    pipe = pipeline_of(device, "sd1", "ddim")
    photo = Image.open(PICTURES / "photo.png")
    options: dict[str, Any] = {"image": photo, "num_inference_steps": 3, "seed": 4, "strength": 0.7}
    white, black = (Image.new("L", photo.size, level) for level in (255, 0))
    painted = [pipe("a dog", mask_image=mask, **options).images[0].tobytes() for mask in (white, None)]
    assert painted[0] == painted[1]
    kept = [pipe(text, mask_image=black, **options).images[0].tobytes() for text in ("a dog", "a fox")]
    assert kept[0] == kept[1]


def test_second_pass(device: Device) -> None:
    """The same prompts and noise at another size: what image to image makes of the enlarged pictures."""
    pipe = pipeline_of(device, "sd1", "ddim")
    options: dict[str, Any] = {"negative_prompt": "a fox", "num_images_per_prompt": 2, "seed": 5}
    first = make_request(pipe.model, "a dog", num_inference_steps=2, **options, scheduler="ddim")
    second = SecondPass(pipe.model, first, scale=1.4, num_inference_steps=4, strength=0.5, scheduler="ddim")
    *_, last = pipe.run(first)
    assert last.images is not None
    assert second.num_steps == 2
    *_, larger = pipe.run(second.request(last.images))
    assert larger.images is not None
    assert [image.size for image in larger.images] == [(44, 44)] * 2  # 1.4 x 32 is 44.8: 11 cells
    expected = pipe(
        "a dog", **options, image=last.images, width=44, height=44, num_inference_steps=4, strength=0.5
    ).images
    assert [image.tobytes() for image in larger.images] == [image.tobytes() for image in expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_image": PICTURES / "mask.png"}, "mask_image must come with image, the picture that is kept where"),
        *(
            ({"image": PICTURES / "photo.png", "strength": value}, r"strength \(=.*\) must be a number above 0 and")
            for value in (0, -0.1, 1.01, float("nan"), "1", True)
        ),
        (
            {"image": PICTURES / "photo.png", "strength": 0.04, "num_inference_steps": 20},
            r"strength \(=0.04\) times num_inference_steps \(=20\) must be at least 1: one step",
        ),
        ({"strength": 0.5}, r"strength \(=0.5\) must come with image, the picture to begin with"),
        ({"image": 3}, r"image \(of type int\) must be a PIL.Image.Image or the path of one"),
        ({"image": []}, r"image \(of 0\) must be one picture, or one for each of 1 to be made"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_request(open_model(model_folder("sd1")), "a dog", **options)


@pytest.mark.parametrize("scale", [0.9, 17, float("nan"), "2", True])
def test_refused_scales(scale: Any) -> None:
    model = open_model(model_folder("sd1"))
    first = make_request(model, "a dog")
    with pytest.raises(InputError, match=r"scale \(=.*\) must be a number from 1 to 16"):
        SecondPass(model, first, scale=scale, num_inference_steps=4, strength=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 4}, r"in_channels \(=4\) must be 3 to encode pictures: red, green and blue"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, r"down_block_types \(=.*\) must be .* to encode"),
    ],
)
def test_encoders_that_are_not_implemented(changes: dict[str, Any], message: str) -> None:
    """The model makes pictures nevertheless."""
    options = json.loads((model_folder("sd1") / "vae" / "config.json").read_text("utf-8"))
    config = VaeConfig.from_options({**options, **changes}, "vae")
    decoder_graph(config, Kernels("f32"), batch=1, height=8, width=8)
    with pytest.raises(ModelError, match=message):
        any_encoder_graph(config, Kernels("f32"), batch=1, height=8, width=8)


def test_a_tiny_autoencoder_has_no_encoder() -> None:
    config = TinyVaeConfig.from_json(FOLDER / "networks" / "tiny_vae")
    with pytest.raises(ModelError, match=r"vae \(=AutoencoderTiny\) must be an AutoencoderKL to encode pictures"):
        any_encoder_graph(config, Kernels("f32"), batch=1, height=8, width=8)
