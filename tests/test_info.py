"""What `describe` says against the graphs, the weights' files, and the promise to leave the GPU alone."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from golden.models import NAMES, golden, model_folder
from safetensors import safe_open

from shaderfusion.errors import DeviceLimitError, InputError, ModelError
from shaderfusion.families import open_model
from shaderfusion.families.run_size import MEMORIES
from shaderfusion.families.stable_diffusion import ModelConfig, StableDiffusion
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.info import describe
from shaderfusion.kernels.capabilities import DESKTOP_GPU
from shaderfusion.kernels.select import Kernels
from shaderfusion.making import fill_model_defaults
from shaderfusion.request import make_request
from shaderfusion.schedulers import make_schedule
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.weights.model_files import ModelFolder

SOURCE = Path(__file__).parent.parent / "src"
EMBEDDED_LIMIT_BYTES = 40_000_000
NOT_OURS = {
    "vae": ("encoder.", "quant_conv."),  # the half of the autoencoder that makes latents
    # What follows the state that SDXL reads.
    "sdxl/text_encoder": ("encoder.layers.2.", "final_layer_norm."),
    "ssd/text_encoder": ("encoder.layers.1.", "final_layer_norm."),
}


def count_parameters(folder: Path, *, left_out: tuple[str, ...] = ()) -> int:
    """Values in a component's safetensors files."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if not name.startswith(left_out):
                    size = 1
                    for length in file.get_slice(name).get_shape():
                        size *= length
                    total += size
    return total


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_files(name: str) -> None:
    folder = model_folder(name)
    counts = {component.name: component.parameters for component in describe(folder).components}
    for component, parameters in counts.items():
        left_out = NOT_OURS.get(f"{name}/{component}", NOT_OURS.get(component, ()))
        assert parameters == count_parameters(folder / component, left_out=left_out)
    assert ("text_encoder_2" in counts) == (name in ("sdxl", "ssd"))


def test_agrees_with_the_graphs() -> None:
    folder = model_folder("odd")
    info = describe(folder, width=40, height=24, batch=2, dtype="f32")
    model = StableDiffusion.from_folder(folder)
    graphs = model.record(Kernels("f32", DESKTOP_GPU), model.run_size(batch=2, width=40, height=24))
    assert (info.width, info.height, info.batch, info.dtype) == (40, 24, 2, "f32")
    assert tuple(component.name for component in info.components) == ("text_encoder", "unet", "vae")
    for component in info.components:
        graph = graphs[component.name]
        assert component.dispatches == len(graph.calls)
        assert component.weights_bytes == graph.weights_bytes
        assert component.tensors_bytes == plan_memory(graph.calls).total_bytes
    assert info.weights_bytes == sum(component.weights_bytes for component in info.components)
    assert info.as_dict()["weights_bytes"] == info.weights_bytes


def test_what_is_found() -> None:
    info = describe(model_folder("ragged"))
    assert dict(info.found) == {
        "pipeline": "StableDiffusionPipeline",
        "text_encoder": "CLIP, 2 layers of 10 channels, 10 tokens",
        "unet": "UNet of 6, 10, 14 channels, which reads embeddings of 10",
        "vae": "autoencoder of 6, 2, 4, 10 channels, 8x8 px to 3 values",
        "scheduler": "EulerDiscreteScheduler, 1000 timesteps",
        "prediction": "epsilon",
        "defaults": "20 steps (in Python 50), guidance scale 7.5",
    }


@pytest.mark.parametrize(
    ("name", "defaults"),
    [  # of diffusers' pipelines: StableDiffusion, its -XL, LatentConsistencyModel, StableDiffusionInpaint
        ("sd2", (50, 7.5, 20)),
        ("sdxl", (50, 5.0, 20)),
        ("tiny_sd", (4, 8.5, 4)),
        ("inpaint", (50, 7.5, 20)),
    ],
)
def test_a_models_own_defaults(name: str, defaults: tuple[int, float, int]) -> None:
    model = open_model(model_folder(name))
    request = make_request(model, "a fox")
    in_python, scale, on_the_command_line = defaults
    assert (request.num_steps, request.guidance_scale) == (
        len(make_schedule(model.scheduler_config, in_python).updates),
        scale,
    )
    given = argparse.Namespace(steps=None, guidance_scale=None)
    fill_model_defaults(given, model)
    assert (given.steps, given.guidance_scale) == (on_the_command_line, scale)
    told = describe(model_folder(name)).found["defaults"]
    assert told.startswith(f"{on_the_command_line} steps")
    assert told.endswith(f", guidance scale {scale:g}")
    assert ("(in Python" in told) == (in_python != on_the_command_line)


def test_stored_bytes_are_those_of_the_files() -> None:
    folder = model_folder("emoji")
    stored = {component.name: component.stored_bytes for component in describe(folder).components}
    assert stored == {
        "text_encoder": {"F16": 2 * count_parameters(folder / "text_encoder")},
        "unet": {"F16": 2 * count_parameters(folder / "unet")},
        "vae": {"F16": 2 * count_parameters(folder / "vae", left_out=NOT_OURS["vae"])},
    }


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder("sd2"), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    info = describe(folder)
    assert [component.stored_bytes for component in info.components] == [None] * 3
    assert info.text().count("not there") == 3
    assert info.memory == describe(model_folder("sd2")).memory


def test_memory_of_each_way() -> None:
    """Their numbers are held against a device's buffers in test_memory.py."""
    info = describe("emoji")
    normal, low, high = info.memory
    assert (normal.memory, low.memory, high.memory) == ("normal", "low", "high")
    assert [turn.networks for turn in normal.turns] == [("text_encoder", "unet", "vae")]
    assert [turn.networks for turn in low.turns] == [("text_encoder",), ("unet", "update"), ("vae",)]
    assert normal.turns[0].weights_bytes == info.weights_bytes
    assert low.peak_bytes < normal.peak_bytes
    several = describe("emoji", batch=4).memory[1]
    grown = [large.tensors_bytes - small.tensors_bytes for small, large in zip(low.turns, several.turns, strict=True)]
    assert grown == [0, 0, 0]  # several pictures are made one by one


def test_text_and_json_say_the_same() -> None:
    info = describe("emoji", batch=2)
    told = json.loads(json.dumps(info.as_dict()))
    assert told["found"] == dict(info.found)
    for memory in told["memory"]:
        assert f"memory {memory['memory']} takes {memory['peak_bytes'] / 1e6:,.1f} MB of the device" in info.text()
        assert memory["peak_bytes"] == max(memory["loading_bytes"], memory["running_bytes"])
    assert "12,844,900" in info.text()


def test_defaults() -> None:
    small, large = describe("emoji"), describe("emoji", dtype="f32")
    assert (small.width, small.height, small.batch, small.dtype) == (128, 128, 1, "f16")
    assert large.weights_bytes == pytest.approx(2 * small.weights_bytes, rel=1e-4)  # but for rounding up to 16 bytes


def test_a_size_for_low_memory_alone() -> None:
    model = open_model("emoji")
    size = model.run_size()
    largest = {memory: 2 * max(model.largest_tensors(size.one_row, memory).values()) for memory in MEMORIES}
    assert largest["low"] < largest["normal"]
    small = replace(DESKTOP_GPU, max_buffer_bytes=largest["low"])
    info = describe("emoji", capabilities=small)
    assert [each.memory for each in info.memory] == ["low"]
    assert [component.name for component in info.components] == ["text_encoder", "unet", "vae"]
    assert set(info.does_not_fit) == {"normal", "high"}
    assert f"memory normal does not fit: {info.does_not_fit['normal']}" in info.text()
    assert info.memory == describe("emoji", capabilities=small, memory="low").memory
    with pytest.raises(DeviceLimitError, match="must need at most"):
        describe("emoji", capabilities=small, memory="normal")
    tiny = replace(small, max_buffer_bytes=1000)
    with pytest.raises(DeviceLimitError, match="must need at most"):
        describe("emoji", capabilities=tiny)


def test_the_token_table_takes_no_memory_of_the_device() -> None:
    config = ModelConfig.read(ModelFolder(model_folder("emoji"))).text_encoder
    text_encoder = describe("emoji", dtype="f32").components[0]
    on_device = text_encoder.parameters - config.vocab_size * config.hidden_size
    assert text_encoder.weights_bytes == pytest.approx(4 * on_device, rel=1e-4)  # but for rounding up to 16 bytes


@pytest.mark.parametrize("side", [0, -32, 33, 32.0, "32", True])
def test_refuses_sizes(side: object) -> None:
    with pytest.raises(InputError, match=r"width \(=.*must be a positive multiple of 4 px"):
        describe("emoji", width=side)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"height \(="):
        describe("emoji", height=side)  # pyright: ignore[reportArgumentType]


def test_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="must be an embedded model"):
        describe(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"model_index\.json"):
        describe(tmp_path)


def test_touches_no_gpu() -> None:
    code = "\n".join(
        [
            "import sys",
            "from shaderfusion.info import describe",
            "assert describe('emoji').components",
            "assert 'wgpu' not in sys.modules",
        ]
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_embedded_model() -> None:
    folder = model_folder("emoji")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= EMBEDDED_LIMIT_BYTES
    assert {path.name for path in folder.iterdir()} >= {
        "text_encoder",
        "unet",
        "vae",
        "tokenizer",
        "scheduler",
        "model_index.json",
    }
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    assert tokenizer(golden("emoji").prompts).tolist() == golden("emoji").token_ids.tolist()
