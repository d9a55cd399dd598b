"""Networks by themselves, that no whole golden model has, against diffusers and transformers in float32."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from golden.models import FOLDER, model_folder
from kernel_runner import relative_error
from safetensors.numpy import load_file, save_file

from shaderfusion.config import ClipTextConfig, TinyVaeConfig, UNetConfig
from shaderfusion.errors import InputError
from shaderfusion.families import open_model
from shaderfusion.families.stable_diffusion import StableDiffusion
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.clip import TOKEN_TABLE, find_end_of_text, text_encoder_graph
from shaderfusion.models.tiny_autoencoder import tiny_decoder_graph
from shaderfusion.models.unet import unet_graph
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.weights.checkpoint import Checkpoint
from shaderfusion.weights.store import WeightStore

BOUND = 1e-4
CLIP = FOLDER / "networks" / "clip"
TINY_VAE = FOLDER / "networks" / "tiny_vae"


def golden() -> Mapping[str, np.ndarray]:
    """What make_models.py stored."""
    return np.load(FOLDER / "networks.npz")


def run(device: Device, graph: Graph, folder: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The graph's outputs; the input of a table takes row numbers."""
    store, source = WeightStore(device), Checkpoint(folder)
    (weights,) = store.load({graph: source})
    program = Program(device, graph, weights)
    for name, array in inputs.items():
        program.write(name, store.read_rows(graph, source, name, array) if name in graph.tables else array)
    program.run()
    outputs = program.read_all(list(graph.outputs))
    program.close()
    store.close()
    return outputs


@pytest.mark.parametrize("option", ["cpu", "none", "all"])
@pytest.mark.parametrize(("name", "in_channels", "out_channels"), [("inpainting", 9, 4), ("pixels", 3, 6)])
def test_unet(device: Device, name: str, in_channels: int, out_channels: int, option: str) -> None:
    kernels = Kernels("f32", device.capabilities)
    if option != "cpu":
        kernels = Kernels("f32", optimizations=Optimizations.parse(option))
    arrays, folder = golden(), FOLDER / "networks" / name
    latents, embeddings = arrays[f"{name}_latents"], arrays[f"{name}_embeddings"]
    B, C, H, W = latents.shape
    graph = unet_graph(
        UNetConfig.from_json(folder), kernels, batch=B, height=H, width=W, num_tokens=embeddings.shape[1]
    )
    inputs = {"latents": latents.transpose(0, 2, 3, 1), "timestep": np.array([381]), "embedding": embeddings}
    actual = run(device, graph, folder, inputs)["model_output"]
    assert (C, actual.shape) == (in_channels, (B, H, W, out_channels))
    assert relative_error(actual, arrays[f"{name}_output"].transpose(0, 2, 3, 1)) < BOUND


def clip(device: Device, row: int, **options: object) -> dict[str, np.ndarray]:
    """The text encoder's outputs for a row of token ids."""
    graph = text_encoder_graph(ClipTextConfig.from_json(CLIP), Kernels("f32"), **options)  # type: ignore[arg-type]
    return run(device, graph, CLIP, {TOKEN_TABLE: golden()["clip_ids"][row : row + 1]})


@pytest.mark.parametrize("pooled", [None, "state"])
@pytest.mark.parametrize("skip_layers", [0, 1, 2])
def test_hidden_states(device: Device, skip_layers: int, pooled: str | None) -> None:
    actual = clip(device, 1, skip_layers=skip_layers, final_norm=False, pooled=pooled)["embedding"]
    assert relative_error(actual[0], golden()["clip_states"][-1 - skip_layers, 1]) < BOUND


def test_hidden_states_after_the_final_norm(device: Device) -> None:
    """The last one is transformers' own; for the one before it, the equation in float64."""
    assert relative_error(clip(device, 0)["embedding"][0], golden()["clip_last"][0]) < BOUND
    state = golden()["clip_states"][-2, 0].astype(np.float64)
    weight, bias = (
        Checkpoint(CLIP).read(f"text_model.final_layer_norm.{name}", (12,)).to_f32() for name in ("weight", "bias")
    )
    deviation = np.sqrt(state.var(axis=-1, keepdims=True) + 1e-5)
    expected = (state - state.mean(axis=-1, keepdims=True)) / deviation * weight + bias
    assert relative_error(clip(device, 0, skip_layers=1)["embedding"][0], expected) < BOUND


@pytest.mark.parametrize("skip_layers", [0, 1])
@pytest.mark.parametrize(("pooled", "key"), [("state", "clip_pooled"), ("projection", "clip_projected")])
def test_pooled_outputs(device: Device, pooled: str, key: str, skip_layers: int) -> None:
    """With an earlier state beside, as SDXL has it: the pooled output is of the last one."""
    arrays = golden()
    places = find_end_of_text(ClipTextConfig.from_json(CLIP), arrays["clip_ids"])
    for row, place in enumerate(places):
        outputs = clip(device, row, pooled=pooled, skip_layers=skip_layers, final_norm=not skip_layers)
        assert relative_error(outputs["pooled"][0, place], arrays[key][row]) < BOUND
        expected = arrays["clip_states"][-2, row] if skip_layers else arrays["clip_last"][row]
        assert relative_error(outputs["embedding"][0], expected) < BOUND


def test_no_layer_is_run_in_vain() -> None:
    config = ClipTextConfig.from_json(CLIP)
    paths = text_encoder_graph(config, Kernels("f32"), skip_layers=2, final_norm=False).weights
    assert {path.split(".")[3] for path in paths if ".layers." in path} == {"0"}
    assert not any("final_layer_norm" in path or "text_projection" in path for path in paths)


def test_end_of_text() -> None:
    config = ClipTextConfig(eos_token_id=21)
    np.testing.assert_array_equal(find_end_of_text(config, golden()["clip_ids"]), [3, 6])
    older = ClipTextConfig(eos_token_id=2)  # the largest id is meant
    np.testing.assert_array_equal(find_end_of_text(older, np.array([[5, 2, 49407, 0], [5, 49407, 49407, 2]])), [2, 1])
    with pytest.raises(InputError, match=r"must have the text encoder's eos_token_id \(=21\) among them"):
        find_end_of_text(config, np.array([[5, 21, 0], [5, 1, 0]]))


@pytest.mark.parametrize("skip_layers", [-1, 3])
def test_layers_that_are_not_there(skip_layers: int) -> None:
    with pytest.raises(InputError, match=rf"skip_layers \(={skip_layers}\) must be at least 0 and less than .* \(=3\)"):
        text_encoder_graph(ClipTextConfig.from_json(CLIP), Kernels("f32"), skip_layers=skip_layers)


# ---------------------------------------------------------------------------------------------- AutoencoderTiny


def decode_tiny(device: Device, kernels: Kernels, path: Path) -> float:
    """The relative error, to diffusers', of the pictures that the weights at `path` make."""
    arrays = np.load(FOLDER / "autoencoders.npz")
    latents, expected = (arrays[name].transpose(0, 2, 3, 1) for name in ("latents", "image"))
    B, H, W, _ = latents.shape
    graph = tiny_decoder_graph(TinyVaeConfig.from_json(TINY_VAE), kernels, batch=B, height=H, width=W)
    actual = run(device, graph, path, {"latents": latents})["image"]
    assert actual.shape == expected.shape
    return relative_error(actual, expected)


@pytest.mark.parametrize("option", ["cpu", "none", "all"])
def test_tiny_decoder(device: Device, option: str) -> None:
    kernels = Kernels("f32", device.capabilities)
    if option != "cpu":
        kernels = Kernels("f32", optimizations=Optimizations.parse(option))
    assert decode_tiny(device, kernels, TINY_VAE) < BOUND


def test_tiny_decoder_f16(device: Device) -> None:
    if not device.info.has_f16:
        pytest.skip("the device has no f16")
    assert decode_tiny(device, Kernels("f16", device.capabilities), TINY_VAE) < 5e-3


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A file of the decoder alone, as TAESD was published: 1.weight, 3.conv.0.weight and so on."""
    (file,) = TINY_VAE.glob("*.safetensors")
    tensors = {}
    for name, array in load_file(file).items():
        if name.startswith("decoder."):
            _, _, index, *rest = name.split(".")
            tensors[".".join([str(int(index) + 1), *rest])] = array
    assert {"1.weight", "1.bias", "3.conv.0.weight"} < set(tensors)
    save_file(tensors, tmp_path / "taesd_decoder.safetensors")
    return tmp_path / "taesd_decoder.safetensors"


def test_tiny_decoder_in_the_original_spelling(device: Device, published: Path) -> None:
    kernels = Kernels("f32", device.capabilities)
    for path in (published.parent, published):
        assert decode_tiny(device, kernels, path) < BOUND


def test_a_tiny_decoder_in_place_of_a_models_own(device: Device, published: Path) -> None:
    """From a folder, or a file of either spelling, which has a scaling factor of 1."""
    (in_diffusers,) = TINY_VAE.glob("*.safetensors")
    arrays = np.load(FOLDER / "autoencoders.npz")
    latents, expected = (arrays[name].transpose(0, 2, 3, 1) for name in ("latents", "image"))
    for vae, factor in ((TINY_VAE, 1.0), (published, 0.8), (in_diffusers, 0.8)):
        family = open_model(model_folder("thirds"), vae=vae)
        with StableDiffusionPipeline(device, family, Kernels("f32", device.capabilities)) as pipe:
            _, height, width, _ = expected.shape
            decoded = pipe._engine.decode(latents / factor, pipe.model.run_size(height=height, width=width))
        assert relative_error(decoded, expected) < BOUND


def test_a_model_with_a_tiny_decoder(device: Device, tmp_path: Path) -> None:
    """Its vae/config.json says of which class it is."""
    model = tmp_path / "model"
    shutil.copytree(model_folder("thirds"), model)
    shutil.rmtree(model / "vae")
    shutil.copytree(TINY_VAE, model / "vae")
    arrays = np.load(FOLDER / "autoencoders.npz")
    latents, expected = (arrays[name].transpose(0, 2, 3, 1) for name in ("latents", "image"))
    family = StableDiffusion.from_folder(model)
    assert (family.scale_factor, family.latent_channels, family.wide_networks) == (4, 5, frozenset())
    with StableDiffusionPipeline(device, family, Kernels("f32", device.capabilities)) as pipe:
        _, height, width, _ = expected.shape
        decoded = pipe._engine.decode(latents, pipe.model.run_size(height=height, width=width))
        assert relative_error(decoded, expected) < BOUND
        images = pipe("a fox", num_inference_steps=2, width=20, height=28, seed=1).images
        assert images[0].size == (20, 28)
