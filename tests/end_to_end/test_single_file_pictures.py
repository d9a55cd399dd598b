"""Pictures by models in one file, against diffusers' by what its own loader of such files makes of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weights.ldm_files import write_weights

from shaderfusion.families.family import RunSize
from shaderfusion.gpu.device import Device
from shaderfusion.pipeline import StableDiffusionPipeline

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
