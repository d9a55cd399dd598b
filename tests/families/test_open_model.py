"""From a model's name or path to its family: what `open_model` takes, and what it refuses."""

from pathlib import Path

import pytest
from weights.ldm_files import golden, write_header

from shaderfusion.errors import InputError, ModelError
from shaderfusion.families import find_model, open_model
from shaderfusion.families.stable_diffusion import StableDiffusion
from shaderfusion.families.stable_diffusion_xl import StableDiffusionXL
from shaderfusion.kernels.capabilities import DESKTOP_GPU
from shaderfusion.kernels.select import Kernels


@pytest.mark.parametrize(
    ("name", "family", "side_px"),
    [
        ("sd15", StableDiffusion, 512),
        ("tiny_sd", StableDiffusion, 512),
        ("sd21", StableDiffusion, 512),
        ("sdxl", StableDiffusionXL, 1024),
        ("ssd_1b", StableDiffusionXL, 1024),
        ("vega", StableDiffusionXL, 1024),
    ],
)
def test_a_single_file_has_all_that_its_graphs_need(
    tmp_path: Path, name: str, family: type[StableDiffusion], side_px: int
) -> None:
    path = write_header(tmp_path / "model.safetensors", golden()[name]["file"])
    assert find_model(path) == find_model(str(path)) == path
    model = open_model(path)
    assert type(model) is family
    assert model.default_size_px == {"height": side_px, "width": side_px}
    size = model.run_size(width=64, height=64)
    for network, graph in model.record(Kernels("f16", DESKTOP_GPU), size).items():
        source = model.sources[model.networks[network].source]
        for weight in (*graph.weights.values(), *graph.tables.values()):
            for tensor in weight.paths:
                assert source.find(tensor, weight.source_shape) in golden()[name]["file"]


def test_prediction_type(tmp_path: Path) -> None:
    path = write_header(tmp_path / "model.safetensors", golden()["sd21"]["file"])
    model = open_model(path, prediction_type="v_prediction")
    assert model.scheduler_config.prediction_type == "v_prediction"
    assert model.default_size_px["width"] == 768
    with pytest.raises(InputError, match=r"prediction_type \(='v'\) must be epsilon or v_prediction"):
        open_model(path, prediction_type="v")
    with pytest.raises(InputError, match=r"prediction_type \(=epsilon\) must be left out for a folder"):
        open_model("emoji", prediction_type="epsilon")


@pytest.mark.parametrize("name", ["nowhere.safetensors", "model.gguf"])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"a folder in diffusers' format.* .safetensors file"):
        find_model(tmp_path / name)
