"""Pictures by models in one file, against diffusers' by what its own loader of such files makes of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weights.ldm_files import write_weights
from weights.safetensors_file import to_bytes

from shaderfusion.families.family import RunSize
from shaderfusion.gpu.device import Device
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.weights.checkpoint import StoredTensor

GOLDEN = Path(__file__).parents[1] / "golden" / "single_files.npz"
IMAGE_BOUND = 2  # of 255, for every value in f32


@pytest.mark.parametrize(
    ("name", "options"),
    [("little_sd1", {}), ("little_sd2", {"prediction_type": "v_prediction"}), ("little_sdxl", {})],
)
def test_picture(device: Device, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    path = write_weights(tmp_path / "model.safetensors", name)
    with np.load(GOLDEN) as arrays:
        expected, call = arrays[name], json.loads(str(arrays["call"]))
    size = RunSize(1, call["height"], call["width"], guidance=True, num_tokens=77)
    with StableDiffusionPipeline.from_single_file(path, device=device, dtype="f32", size=size, **options) as pipe:
        image = pipe(**call).images[0]
    difference = np.abs(np.asarray(image, int) - expected)
    assert difference.max() <= IMAGE_BOUND
    assert expected.std() > 30  # the picture shows something


def test_f8(device: Device, tmp_path: Path) -> None:
    # The same values in f16: f8 is read everywhere, also in parts, transposed and by rows.
    every_f16 = np.arange(2**16, dtype=np.uint16).view(np.float16)
    in_f8 = np.frombuffer(to_bytes(np.nan_to_num(every_f16), "f8_e4m3"), np.uint8)  # of each, by its bits
    again_f16 = StoredTensor("F8_E4M3", in_f8).to_f32().astype(np.float16)

    def f8(values: np.ndarray) -> np.ndarray:
        return in_f8[values.view(np.uint16)]

    def same_in_f16(values: np.ndarray) -> np.ndarray:
        return again_f16[values.view(np.uint16)]

    size = RunSize(1, 16, 16, guidance=False, num_tokens=77)
    call = {"width": 16, "height": 16, "num_inference_steps": 1, "guidance_scale": 1.0, "seed": 0}
    images = []
    for dtype, change in (("F8_E4M3", f8), ("F16", same_in_f16)):
        path = write_weights(tmp_path / f"{dtype}.safetensors", "little_sdxl", dtype, change)
        with StableDiffusionPipeline.from_single_file(path, device=device, dtype="f32", size=size) as pipe:
            images.append(pipe("a fox", **call).images[0].tobytes())
    assert images[0] == images[1]
