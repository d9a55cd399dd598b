"""Another VAE in the place of a model's own: files in both layouts, folders, and what is none."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from golden.models import model_folder
from weights.ldm_files import golden, write_header, write_model

from shaderfusion.config import ClipTextConfig, TinyVaeConfig, VaeConfig
from shaderfusion.errors import ModelError, WeightsError
from shaderfusion.families import open_model
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.tiny_autoencoder import tiny_decoder_graph
from shaderfusion.weights.model_files import ModelFolder
from shaderfusion.weights.names import name_candidates
from shaderfusion.weights.other_vae import WithOtherVae
from shaderfusion.weights.single_file import SingleFile

PREFIX = "first_stage_model."


@pytest.fixture
def model(tmp_path: Path) -> SingleFile:
    """Without a VAE of its own."""
    shapes = {name: shape for name, shape in golden()["little_sdxl"]["file"].items() if not name.startswith(PREFIX)}
    return SingleFile(write_header(tmp_path / "model.safetensors", shapes))


def vae_shapes(name: str = "little_sdxl") -> dict[str, Any]:
    """Of a file with the VAE alone."""
    file = golden()[name]["file"]
    return {key.removeprefix(PREFIX): shape for key, shape in file.items() if key.startswith(PREFIX)}


def require_all(model: WithOtherVae, name: str = "little_sdxl") -> None:
    """The VAE's configuration, and every tensor."""
    expected = golden()[name]["components"]["vae"]
    config = model.config("vae", VaeConfig)
    for key in ("block_out_channels", "layers_per_block"):
        assert getattr(config, key) in (expected["config"][key], tuple(expected["config"][key] if "out" in key else ()))
    for path, shape in expected["tensors"].items():
        model.tensors("vae").find(path, tuple(shape))


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_the_original_layout(tmp_path: Path, model: SingleFile, prefix: str) -> None:
    shapes = {prefix + name: shape for name, shape in vae_shapes().items()}
    other = WithOtherVae(model, write_header(tmp_path / "vae.safetensors", shapes))
    require_all(other)
    assert other.config("vae", VaeConfig).scaling_factor == 0.13025
    assert other.config("vae", VaeConfig).force_upcast is True


def test_the_rest_is_the_models(tmp_path: Path, model: SingleFile) -> None:
    other = WithOtherVae(model, write_header(tmp_path / "vae.safetensors", vae_shapes()))
    assert other.options == model.options
    assert other.path == model.path
    assert other.scheduler_config() == model.scheduler_config()
    assert other.config("text_encoder", ClipTextConfig) == model.config("text_encoder", ClipTextConfig)
    assert other.tokenizer("tokenizer_2").pad_id == 0
    assert other.tensors("text_encoder").find("text_model.final_layer_norm.bias", (64,)).startswith("conditioner.")


def test_the_tensors_of_a_file_alone_are_those_that_diffusers_converts(tmp_path: Path, model: SingleFile) -> None:
    whole = write_model(tmp_path / "vae.safetensors", golden()["little_sd1"]["file"])
    source = WithOtherVae(model, whole).tensors("vae")
    shapes = golden()["little_sd1"]["components"]["vae"]["tensors"]
    for path, digest in golden()["little_sd1"]["digests"]["vae"].items():
        assert hashlib.sha256(source.read(path, tuple(shapes[path])).data.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("old", [False, True])
def test_diffusers_layout(tmp_path: Path, model: SingleFile, old: bool) -> None:
    shapes = golden()["little_sdxl"]["components"]["vae"]["tensors"]
    if old:
        for new_name, old_name in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            shapes = {
                name.replace(f"attentions.0.{new_name}", f"attentions.0.{old_name}"): s for name, s in shapes.items()
            }
    other = WithOtherVae(model, write_header(tmp_path / "vae.safetensors", shapes))
    config = other.config("vae", VaeConfig)
    assert (config.block_out_channels, config.layers_per_block) == ((32, 64), 1)
    assert config.mid_block_add_attention
    for path, shape in golden()["little_sdxl"]["components"]["vae"]["tensors"].items():
        other.tensors("vae").find(path, tuple(shape))


def test_folders(tmp_path: Path, model: SingleFile) -> None:
    # A folder says itself how its latents are scaled.
    config = golden()["little_sd1"]["components"]["vae"]["config"] | {"scaling_factor": 0.5}
    folder = tmp_path / "whole" / "vae"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = golden()["little_sd1"]["components"]["vae"]["tensors"]
    write_header(folder / "diffusion_pytorch_model.safetensors", shapes)
    for path in (folder, folder.parent):
        other = WithOtherVae(model, path)
        assert other.config("vae", VaeConfig).scaling_factor == 0.5
        assert other.tensors("vae").find("decoder.conv_in.bias", (64,))


def test_a_folder_with_the_vae_of_a_file(tmp_path: Path) -> None:
    shapes = vae_shapes("little_sd1")
    path = write_header(tmp_path / "vae.safetensors", shapes)
    found = open_model("emoji", vae=path)
    own = ModelFolder(found.files.path).config("vae", VaeConfig)
    other = found.files.config("vae", VaeConfig)
    assert (other.block_out_channels, other.scaling_factor) == ((32, 64), own.scaling_factor)


def test_latents_that_do_not_fit(tmp_path: Path) -> None:
    shapes = vae_shapes() | {"decoder.conv_in.weight": [64, 16, 3, 3]}
    path = write_header(tmp_path / "vae.safetensors", shapes)
    with pytest.raises(ModelError, match=r"must equal vae's latent_channels \(=16\)"):
        open_model(write_header(tmp_path / "model.safetensors", golden()["little_sdxl"]["file"]), vae=path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("decoder.layers.1.weight",),
            r"holds neither an AutoencoderKL nor a TAESD; give another file as vae",
        ),
        (("lora_unet_x.lora_up.weight",), r"holds neither an AutoencoderKL nor a TAESD"),
    ],
)
def test_a_file_without_a_vae(tmp_path: Path, model: SingleFile, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        WithOtherVae(model, write_header(tmp_path / "vae.safetensors", {name: [1] for name in names}))


@pytest.mark.parametrize("name", ["diffusers", "original"])
def test_taesd(tmp_path: Path, model: SingleFile, name: str) -> None:
    weights = tiny_decoder_graph(TinyVaeConfig(), Kernels("f32"), batch=1, height=8, width=8).weights
    shapes = {
        list(name_candidates(path))[0 if name == "diffusers" else -1]: weight.source_shape
        for path, weight in weights.items()
    }
    other = WithOtherVae(model, write_header(tmp_path / "taesd.safetensors", shapes))
    assert other.class_name("vae") == "AutoencoderTiny"
    assert other.config("vae", TinyVaeConfig) == TinyVaeConfig()
    for path, weight in weights.items():
        assert other.tensors("vae").find(path, weight.source_shape) in shapes


def test_damaged_vaes(tmp_path: Path, model: SingleFile) -> None:
    for name in list(vae_shapes())[::9]:
        shapes = vae_shapes()
        del shapes[name]
        path = write_header(tmp_path / "vae.safetensors", shapes)
        with pytest.raises(ModelError, match=str(path)):
            require_all(WithOtherVae(model, path))


def test_no_such_file(tmp_path: Path, model: SingleFile) -> None:
    with pytest.raises(ModelError, match=r"vae \(='.*nowhere.safetensors'\) must be a .safetensors file or a folder"):
        WithOtherVae(model, tmp_path / "nowhere.safetensors")
    (tmp_path / "vae.pt").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"vae.pt: pickle files can run code when opened"):
        WithOtherVae(model, tmp_path / "vae.pt")
    (tmp_path / "vae.safetensors").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"vae.safetensors: not a whole safetensors file"):
        WithOtherVae(model, tmp_path / "vae.safetensors")


def test_a_folder_of_another_kind(tmp_path: Path, model: SingleFile) -> None:
    shutil.copytree(model_folder("sd1") / "unet", tmp_path / "unet")
    with pytest.raises(ModelError, match=r"_class_name \(='UNet2DConditionModel'\) is not supported"):
        WithOtherVae(model, tmp_path / "unet").config("vae", VaeConfig)
