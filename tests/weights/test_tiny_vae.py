"""The configuration of a TAESD decoder, found in the names and shapes of its tensors."""

import json
from pathlib import Path

import pytest
from golden.models import FOLDER
from safetensors import safe_open

from shaderfusion.config import TinyVaeConfig
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.tiny_autoencoder import tiny_decoder_graph
from shaderfusion.weights.names import name_candidates
from shaderfusion.weights.tiny_vae import tiny_vae_options

TINY_VAE = FOLDER / "networks" / "tiny_vae"


def read(folder: Path, options: object) -> TinyVaeConfig:
    """As a configuration's file."""
    (folder / "config.json").write_text(json.dumps(options))
    return TinyVaeConfig.from_json(folder)


@pytest.mark.parametrize("name", [0, -1], ids=["diffusers", "original"])
def test_taesd(tmp_path: Path, name: int) -> None:
    weights = tiny_decoder_graph(TinyVaeConfig(), Kernels("f32"), batch=1, height=8, width=8).weights
    shapes = {list(name_candidates(path))[name]: weight.source_shape for path, weight in weights.items()}
    assert read(tmp_path, tiny_vae_options(shapes)) == TinyVaeConfig()


def test_a_file_of_diffusers_with_its_encoder(tmp_path: Path) -> None:
    (file,) = TINY_VAE.glob("*.safetensors")
    with safe_open(file, framework="numpy") as tensors:
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    assert any(name.startswith("encoder.") for name in shapes)
    options = tiny_vae_options(shapes)
    assert options is not None
    # Neither tensor says the scaling factor, which in published files is 1.
    assert read(tmp_path, {**options, "scaling_factor": 0.8}) == TinyVaeConfig.from_json(TINY_VAE)


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"decoder.conv_in.weight": (512, 4, 3, 3), "post_quant_conv.weight": (4, 4, 1, 1)},
        {"0.weight": (4,), "1.weight": (4,)},
        {"1.weight": (64, 4, 3, 3)},
        {"1.weight": (64, 4, 3, 3), "decoder.layers.2.weight": (64, 4, 3, 3)},
        {"9" * 5000 + ".weight": (64, 4, 3, 3), "1.weight": (64, 4, 3, 3)},
        {"1.weight": (64, 4, 3, 3), "2.weight": ()},
    ],
)
def test_what_is_none(shapes: dict[str, tuple[int, ...]]) -> None:
    assert tiny_vae_options(shapes) is None
