"""A model folder as a whole: found, its configurations fitted to each other, its image sizes."""

import copy
import dataclasses
import json
import shutil
import time
from itertools import zip_longest
from pathlib import Path

import pytest

from shaderfusion.bench.subject import SD14_FOLDER
from shaderfusion.errors import DeviceLimitError, InputError, ModelError
from shaderfusion.families import find_model, open_model
from shaderfusion.families.family import BESIDE_LATENTS
from shaderfusion.families.run_size import usual_memory
from shaderfusion.families.stable_diffusion import ModelConfig, StableDiffusion
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.kernels.capabilities import DESKTOP_GPU
from shaderfusion.kernels.select import Kernels
from shaderfusion.weights.model_files import ModelFolder

COMPONENTS = ("text_encoder", "unet", "vae")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The configurations of the embedded model, without its weights."""
    source = find_model("emoji")
    shutil.copy(source / "model_index.json", tmp_path)
    for component in COMPONENTS:
        (tmp_path / component).mkdir()
        shutil.copy(source / component / "config.json", tmp_path / component)
    return tmp_path


def change(folder: Path, file: str, **options: object) -> None:
    """Overwrites options in a JSON file; None removes one."""
    path = folder / file
    config = json.loads(path.read_text()) | options
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


# ---- find_model


def test_find_embedded_and_folder(folder: Path) -> None:
    assert find_model("emoji").name == "emoji"
    assert find_model(folder) == find_model(str(folder)) == folder


@pytest.mark.parametrize("model", ["", "emojis", "CompVis/stable-diffusion-v1-4", Path("nowhere")], ids=repr)
def test_no_such_model(model: str | Path) -> None:
    with pytest.raises(ModelError, match=rf"model \(='{model}'\) must be an embedded model \(emoji\), a folder in"):
        find_model(model)


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index.json'\) must be an embedded model"):
        find_model(folder / "model_index.json")


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index.json"):
        open_model(tmp_path)


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", None])
def test_another_pipeline(folder: Path, name: str | None) -> None:
    change(folder, "model_index.json", _class_name=name)
    with pytest.raises(ModelError, match=rf"its pipeline \(={name!r}\) must be StableDiffusionPipeline"):
        open_model(folder)


# ---- ModelConfig


def test_from_folder(folder: Path) -> None:
    config = ModelConfig.read(ModelFolder(folder))
    assert config.text_encoder.hidden_size == config.unet.cross_attention_dim


@pytest.mark.parametrize("component", COMPONENTS)
def test_missing_component(folder: Path, component: str) -> None:
    shutil.rmtree(folder / component)
    with pytest.raises(ModelError, match=component):
        ModelConfig.read(ModelFolder(folder))


def test_components_of_different_models(folder: Path) -> None:
    change(folder, "text_encoder/config.json", hidden_size=64)
    message = r"hidden_size \(=64\) must equal unet's cross_attention_dim \(=256\); the components are of"
    with pytest.raises(ModelError, match=message):
        ModelConfig.read(ModelFolder(folder))


@pytest.mark.parametrize(
    ("file", "key", "latents"),
    [("unet", "in_channels", 4), ("unet", "out_channels", 4), ("vae", "latent_channels", 8)],
)
def test_latent_channels(folder: Path, file: str, key: str, latents: int) -> None:
    change(folder, f"{file}/config.json", **{key: 8})
    rule = rf"must equal vae's latent_channels \(={latents}\), or for inpainting {2 * latents + 1} and {latents}"
    with pytest.raises(ModelError, match=rf"unet's in_channels .* and out_channels .* {rule}"):
        ModelConfig.read(ModelFolder(folder))


def test_an_inpainting_unet_reads_a_mask_of_ones_and_no_picture(folder: Path) -> None:
    change(folder, "unet/config.json", in_channels=9)
    model = StableDiffusion.from_folder(folder)
    size = model.run_size(batch=2, height=20, width=12)
    beside = model.shared_inputs(size, 7.5)[BESIDE_LATENTS]
    assert beside.shape == (1, 5, 3, 5)
    assert beside[..., 0].min() == 1
    assert not beside[..., 1:].any()
    unet = model.record(Kernels("f32"), size)["unet"]
    assert (unet.inputs["latents"].channels, unet.inputs["x_t"].channels) == (9, 4)
    assert BESIDE_LATENTS not in unet.inputs


def test_an_inpainting_unet_of_odd_latents(folder: Path) -> None:
    change(folder, "unet/config.json", in_channels=7, out_channels=3)
    change(folder, "vae/config.json", latent_channels=3)
    with pytest.raises(ModelError, match=r"latent_channels \(=3\) must be a multiple of 4 for a UNet that paints into"):
        ModelConfig.read(ModelFolder(folder))


def test_pictures_are_red_green_and_blue(folder: Path) -> None:
    change(folder, "vae/config.json", out_channels=4)
    with pytest.raises(ModelError, match=r"vae's out_channels \(=4\) must be 3: red, green and blue"):
        ModelConfig.read(ModelFolder(folder))


# ---- image sizes


@pytest.fixture
def model(folder: Path) -> StableDiffusion:
    """The embedded model: 4 pixels a latent cell."""
    return StableDiffusion.from_folder(folder)


def test_sizes(model: StableDiffusion) -> None:
    assert (model.scale_factor, model.default_size_px) == (4, {"height": 128, "width": 128})
    assert model.require_side("width", None) == 128
    assert [model.require_side("width", px) for px in (4, 36, 128, 1024)] == [4, 36, 128, 1024]


@pytest.mark.parametrize("px", [0, -32, 1, 33, 102, 64.0, "64", True])
def test_bad_size(model: StableDiffusion, px: object) -> None:
    with pytest.raises(InputError) as caught:
        model.require_side("height", px)  # type: ignore[arg-type]
    assert str(caught.value) == f"height (={px!r}) must be a positive multiple of 4 px, one latent cell of the model"


def test_default_size(model: StableDiffusion) -> None:
    for sample_size, height, width in ((33, 132, 132), (None, 256, 256), ((5, 7), 20, 28)):
        unet = dataclasses.replace(model.config.unet, sample_size=sample_size)
        changed = copy.copy(model)
        changed.config = dataclasses.replace(model.config, unet=unet)
        assert (changed.require_side("height", None), changed.require_side("width", None)) == (height, width)


# ---- graphs


@pytest.mark.parametrize("guidance", [False, True])
@pytest.mark.parametrize(("width", "height"), [(32, 32), (96, 64), (4, 20)])
def test_graphs(model: StableDiffusion, width: int, height: int, guidance: bool) -> None:
    size = model.run_size(batch=2, width=width, height=height, guidance=guidance)
    graphs = model.record(Kernels("f16"), size)
    assert tuple(graphs) == COMPONENTS
    rows, H, W = 4 if guidance else 2, height // 4, width // 4
    unet = graphs["unet"]
    assert unet.inputs["latents"].shape == unet.outputs["model_output"].shape == (rows, H, W, 4)
    assert unet.inputs["embedding"].shape == (rows, 32, 256)
    assert (unet.inputs["x_t"].shape, unet.inputs["x_t"].dtype) == ((2, H, W, 4), "f32")
    assert graphs["vae"].outputs["image"].shape == (1, height, width, 4)
    assert graphs["vae"].outputs["image"].channels == 3
    assert graphs["text_encoder"].outputs["embedding"].shape == (1, 32, 256)
    for graph in graphs.values():
        assert plan_memory(graph.calls).total_bytes > 0
        assert all(call.label.startswith(f"{graph.name}") for call in graph.calls)


def test_weights_do_not_depend_on_the_size(model: StableDiffusion) -> None:
    small, large = (model.record(Kernels("f32"), model.run_size(width=px, height=px)) for px in (32, 96))
    for name in COMPONENTS:
        shapes = [
            {path: (w.source_shape, w.tensor.name) for path, w in graphs[name].weights.items()}
            for graphs in (small, large)
        ]
        assert shapes[0] == shapes[1]


def test_memory_of_sd_14() -> None:
    model = StableDiffusion.from_folder(SD14_FOLDER)
    graphs = model.record(Kernels("f16", DESKTOP_GPU), model.run_size())
    weights_mb = {name: graph.weights_bytes / 1e6 for name, graph in graphs.items()}
    plans = [plan_memory(graph.calls) for graph in graphs.values()]
    tensors_mb = dict(zip(graphs, (plan.total_bytes / 1e6 for plan in plans), strict=True))
    # The programs share their i-th buffers: 304.6 MB.
    shared_bytes = sum(map(max, zip_longest(*(plan.buffer_sizes_bytes for plan in plans), fillvalue=0)))
    # 170.2, 1719.0 and 105.2; 4.8, 117.3 and 290.8. Hardly any filter is stored transformed.
    assert all(weights_mb[name] < bound for name, bound in {"text_encoder": 171, "unet": 1720, "vae": 106}.items())
    assert all(tensors_mb[name] < bound for name, bound in {"text_encoder": 10, "unet": 120, "vae": 300}.items())
    assert sum(weights_mb.values()) + shared_bytes / 1e6 < 2300


def test_largest_tensors_are_as_estimated() -> None:
    """The estimate, made without graphs, is never above what the layers make, and not far below."""
    model = StableDiffusion.from_folder(SD14_FOLDER)
    for size in (model.run_size(), model.run_size(width=768, height=512, batch=3), model.run_size(guidance=False)):
        graphs = model.record(Kernels("f16", DESKTOP_GPU), size)
        for name, values in model.largest_tensors(size).items():
            bound = (b.tensor for call in graphs[name].calls for b in call.bindings if b.tensor.role == "intermediate")
            made = [tensor.size for tensor in bound if tensor.name.endswith(".out")]  # none of Winograd's own
            assert max(made) / 2 <= values <= max(made)


@pytest.mark.parametrize(("px", "batch"), [(8192, 1), (131072, 1), (512, 10**9)])
def test_sizes_that_cannot_work_are_refused_before_anything_is_recorded(px: int, batch: int) -> None:
    model = StableDiffusion.from_folder(SD14_FOLDER)
    size = model.run_size(width=px, height=px, batch=batch)
    started = time.process_time()
    with pytest.raises(DeviceLimitError, match=rf"width x height \(={px}x{px}\) with a batch \(={batch}\) needs a"):
        model.require_fits(size, DESKTOP_GPU, "f16")
    assert time.process_time() - started < 0.5


def test_pickle_files_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(b"not even a pickle")
    with pytest.raises(ModelError, match=r"model.ckpt: pickle files can run code .* `StableDiffusionPipeline.from_si"):
        find_model(checkpoint)


def test_the_decoder_holds_two_tensors_at_a_time() -> None:
    """Of its last level: the upsampled one, whose place all others but one take over, and a little beside."""
    model = StableDiffusion(ModelFolder(SD14_FOLDER))
    graph = model.record(Kernels("f16", DESKTOP_GPU), model.run_size(width=768, height=768))["vae"]
    upsampled, between = (2 * 768 * 768 * channels for channels in (256, 128))
    assert plan_memory(graph.calls).total_bytes < 1.15 * (upsampled + between)


# ---- ways to use memory


def test_high_memory_keeps_the_denoisers_filters_alone() -> None:
    model = open_model(SD14_FOLDER)
    graphs = {
        memory: model.record(Kernels("f16", DESKTOP_GPU), model.run_size(), memory) for memory in ("normal", "high")
    }
    made = {
        memory: {name for name, graph in of.items() if any(c.entry_point == "transform_filters" for c in graph.calls)}
        for memory, of in graphs.items()
    }
    assert made == {"normal": {"unet", "vae"}, "high": {"vae"}}
    assert graphs["high"]["unet"].weights_bytes > graphs["normal"]["unet"].weights_bytes
    assert graphs["high"]["vae"].weights_bytes == graphs["normal"]["vae"].weights_bytes


@pytest.mark.parametrize(("memory_bytes", "memory"), [(None, "normal"), (16 << 30, "normal"), (24 << 30, "high")])
def test_usual_memory(memory_bytes: int | None, memory: str) -> None:
    assert usual_memory(dataclasses.replace(DESKTOP_GPU, memory_bytes=memory_bytes)) == memory
