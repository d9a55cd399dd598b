"""What `describe` says against the graphs, the weights' files, and the promise to leave the GPU alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from golden.models import NAMES, golden, model_folder
from safetensors import safe_open

from shaderfusion.errors import InputError, ModelError
from shaderfusion.families.stable_diffusion import ModelConfig, StableDiffusion
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.info import describe
from shaderfusion.kernels.capabilities import DESKTOP_GPU
from shaderfusion.kernels.select import Kernels
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


def test_defaults() -> None:
    small, large = describe("emoji"), describe("emoji", dtype="f32")
    assert (small.width, small.height, small.batch, small.dtype) == (128, 128, 1, "f16")
    assert large.weights_bytes == pytest.approx(2 * small.weights_bytes, rel=1e-4)  # but for rounding up to 16 bytes


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
