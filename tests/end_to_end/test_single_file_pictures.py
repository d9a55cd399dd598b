"""Models in one file of every family, against diffusers by what its own loader of such files makes of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from golden.models import FOLDER
from kernel_runner import relative_error
from weights.ldm_files import write_weights
from weights.safetensors_file import to_bytes

from shaderfusion.denoising import DenoisingState, Step
from shaderfusion.families.run_size import RunSize
from shaderfusion.gpu.device import Device
from shaderfusion.kernels.common.prepare_weight import StoredDType
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.random import randn
from shaderfusion.schedulers import make_schedule
from shaderfusion.tensor import DType
from shaderfusion.weights.checkpoint import StoredTensor

with np.load(FOLDER / "single_files.npz") as arrays:
    GOLDEN = dict(arrays)
FACTS = json.loads(str(GOLDEN["facts"]))
CASES: dict[str, dict[str, Any]] = FACTS["cases"]
STAGE_BOUND = 1e-4  # relative error in f32
IMAGE_BOUND = 2  # of 255, for every value in f32
F16_PSNR_DB = 35
IN_F16 = ("sd1", "sd2", "sdxl", "lcm", "ssd_1b")  # what is read is the same in both; test_golden.py has all families


class Opened(NamedTuple):
    """A case's files, open in f32."""

    name: str
    pipe: StableDiffusionPipeline


def open_pipe(device: Device, name: str, folder: Path, dtype: DType) -> StableDiffusionPipeline:
    """Writes the case's files and opens them as a person would, who knows what they do not say."""
    case = CASES[name]
    options: dict[str, Any] = {"path": write_weights(folder / "model.safetensors", case["model"]), **case["options"]}
    if case["vae"]:
        options["vae"] = write_weights(folder / "taesd.safetensors", case["vae"])
    call = case["call"]
    size = RunSize(1, call["height"], call["width"], guidance=call["guidance_scale"] > 1, num_tokens=77)
    return StableDiffusionPipeline.from_single_file(device=device, dtype=dtype, size=size, tuning="off", **options)


def picture(pipe: StableDiffusionPipeline, name: str) -> np.ndarray:
    """The case's whole run."""
    case = CASES[name]
    call = dict(case["call"])
    if case["is_inpainting"]:
        call |= {"image": FOLDER / "pictures" / "photo.png", "mask_image": FOLDER / "pictures" / "mask.png"}
    return np.asarray(pipe(**call).images[0], np.float64)


@pytest.fixture(scope="module", params=CASES)
def opened(
    device: Device, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
    """One case after the other."""
    with open_pipe(device, request.param, tmp_path_factory.mktemp("files"), "f32") as pipe:
        yield Opened(request.param, pipe)


def test_stages(opened: Opened) -> None:
    """Token ids, embeddings, and the UNet at three timesteps."""
    pipe, model = opened.pipe, CASES[opened.name]["model"]
    ids = GOLDEN[f"{model}_token_ids"]
    call = CASES["sd1"]["call"]
    np.testing.assert_array_equal(pipe.model.tokenize([call["negative_prompt"], call["prompt"]]), ids)

    conditioning = pipe._engine.condition(ids, pipe.model.run_size())
    kept = conditioning | {"embedding": conditioning["embedding"][:, :: FACTS["every_nth_token"]]}
    for key, what in {"embedding": "embeddings", "pooled": "pooled"}.items():
        assert (key in kept) == (f"{model}_{what}" in GOLDEN)
        if key in kept:
            for row, expected in zip(kept[key], GOLDEN[f"{model}_{what}"], strict=True):
                assert relative_error(row, expected) < STAGE_BOUND

    outputs = GOLDEN[f"{model}_unet"]
    B, C, H, W = outputs.shape[1:]
    f = pipe.model.scale_factor
    size = pipe.model.run_size(batch=B, height=f * H, width=f * W, guidance=False)
    latents = randn((B, C, H, W), FACTS["unet_seed"]).transpose(0, 2, 3, 1)
    update = make_schedule(pipe.model.scheduler_config, 1, "euler").updates[0]
    inputs = conditioning | pipe.model.shared_inputs(size, FACTS["unet_guidance_scale"])
    for timestep, expected in zip(FACTS["unet_timesteps"], np.moveaxis(outputs, 2, -1), strict=True):
        pipe._engine.denoise(DenoisingState(size, inputs, latents, 1.0), Step(timestep, update, 1.0, 1.0))
        actual = pipe._engine.program("unet", size).read("model_output")
        for row, expected_row in zip(actual, expected, strict=True):
            assert relative_error(row, expected_row) < STAGE_BOUND


def test_picture(opened: Opened) -> None:
    expected = GOLDEN[f"{opened.name}_image"]
    assert expected.std() > 30  # the picture shows something
    assert np.abs(picture(opened.pipe, opened.name) - expected).max() <= IMAGE_BOUND


@pytest.mark.parametrize("name", IN_F16)
def test_picture_f16(device: Device, tmp_path: Path, name: str) -> None:
    if not device.info.has_f16:
        pytest.skip("the device has no f16")
    with open_pipe(device, name, tmp_path, "f16") as pipe:
        error = np.mean((picture(pipe, name) - GOLDEN[f"{name}_image"]) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > F16_PSNR_DB


@pytest.mark.parametrize(("dtype", "model"), [("f8_e4m3", "sdxl"), ("f8_e5m2", "sd1"), ("bf16", "sd1")])
def test_dtypes(device: Device, tmp_path: Path, dtype: str, model: str) -> None:
    # The same values in f16, which holds all of these: they are read everywhere, also in parts, transposed and by rows.
    every_f16 = np.nan_to_num(np.arange(2**16, dtype=np.uint16).view(np.float16)).clip(-400, 400)
    name, bits = cast(StoredDType, dtype.upper()), np.uint16 if dtype == "bf16" else np.uint8
    stored = np.frombuffer(to_bytes(every_f16, dtype), bits)  # of each, by its bits
    again_f16 = StoredTensor(name, stored.view(np.uint8)).to_f32().astype(np.float16)

    def change(values: np.ndarray) -> np.ndarray:
        return stored[values.view(np.uint16)]

    def same_in_f16(values: np.ndarray) -> np.ndarray:
        return again_f16[values.view(np.uint16)]

    size = RunSize(1, 16, 16, guidance=False, num_tokens=77)
    call = {"width": 16, "height": 16, "num_inference_steps": 1, "guidance_scale": 1.0, "seed": 0}
    images = []
    for kind, how in ((name, change), ("F16", same_in_f16)):
        path = write_weights(tmp_path / f"{kind}.safetensors", f"little_{model}", kind, how)
        with StableDiffusionPipeline.from_single_file(path, device=device, dtype="f32", size=size) as pipe:
            images.append(pipe("a fox", **call).images[0].tobytes())
    assert images[0] == images[1]
