"""Adapters of every kind, in every spelling, against PEFT and diffusers (golden/make_lora.py)."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER, load, model_folder
from kernel_runner import relative_error

from shaderfusion.gpu.buffers import download
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.select import Kernels
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.random import randn
from shaderfusion.weights.lora.adapters import Adapters
from shaderfusion.weights.lora.file import read_adapter
from shaderfusion.weights.prepare import WeightLoader

BOUND = 1e-4  # relative error in f32
ADAPTERS = sorted(path.stem for path in (FOLDER / "lora").glob("*.safetensors"))


@cache
def stored() -> dict[str, np.ndarray]:
    """What make_lora.py stored."""
    with np.load(FOLDER / "lora.npz") as arrays:
        return dict(arrays)


FACTS = json.loads(str(stored()["facts"]))
CASES: dict[str, dict[str, Any]] = FACTS["cases"]


def probe(N: int) -> np.ndarray:
    """The vector that merged tensors were multiplied by."""
    return np.cos(1 + np.arange(N) ** 2 % 97)


def adapt(pipe: StableDiffusionPipeline, strengths: dict[str, Any]) -> None:
    """Has these adapters alone."""
    pipe.unload_lora_weights()
    for name in strengths:
        pipe.load_lora_weights(FOLDER / "lora" / f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(list(strengths), list(strengths.values()))


def model_of(case: str) -> str:
    """The golden model that a case's adapters are for."""
    return "sdxl" if case == "xl" else "sd1"


def run(pipe: StableDiffusionPipeline) -> dict[str, np.ndarray]:
    """What the golden prompt becomes, and the UNet's `output`."""
    side = 8 * pipe.model.scale_factor
    size = pipe.model.run_size(width=side, height=side)
    is_xl = pipe.model.tokens_shape[0] == 2
    ids = np.array([[FACTS["xl_prompt_ids"]] * 2] if is_xl else [FACTS["prompt_ids"]])
    made = pipe._engine.condition(ids, size)
    latents = randn((1, 4, 8, 8), 1).transpose(0, 2, 3, 1)
    inputs = {name: np.concatenate([array, array]) for name, array in {**made, "latents": latents}.items()}
    if is_xl:
        inputs["time_ids"] = np.tile(np.array([16, 16, 0, 0, 16, 16], np.float32), (2, 1))
    inputs["timestep"] = np.array([FACTS["timestep"]])
    output = pipe._engine.run("unet", size, inputs, ["model_output"])["model_output"]
    return {name: array[0] for name, array in made.items()} | {"output": output[0].transpose(2, 0, 1)}


@pytest.fixture(scope="module")
def pipes(device: Device) -> dict[str, StableDiffusionPipeline]:
    """The golden models, whose adapters tests change."""
    options = {"device": device, "dtype": "f32", "tuning": "off"}
    return {
        name: StableDiffusionPipeline.from_pretrained(model_folder(name), **options)  # type: ignore[arg-type]
        for name in ("sd1", "sdxl")
    }


def require_golden(pipe: StableDiffusionPipeline, case: str) -> None:
    """What is stored for the case."""
    made = run(pipe)
    for name, array in made.items():
        assert relative_error(array, stored()[f"{case}_{name}"]) < BOUND, name


def test_every_adapter_has_a_case() -> None:
    assert {name for strengths in CASES.values() for name in strengths} == set(ADAPTERS)


@pytest.mark.parametrize("case", CASES)
def test_networks(pipes: dict[str, StableDiffusionPipeline], case: str) -> None:
    pipe = pipes[model_of(case)]
    adapt(pipe, CASES[case])
    require_golden(pipe, case)


def of_peft(case: str) -> dict[tuple[str, str], np.ndarray]:
    """By component and path, each tensor that PEFT changes times `probe`."""
    prefix = {"unet": "", "text_encoder": "text_model.", "text_encoder_2": ""}  # PEFT has transformers' paths
    found = {tuple(key.split("/")[1:]): value for key, value in stored().items() if key.startswith(f"{case}/")}
    return {(component, prefix[component] + path): value for (component, path), value in found.items()}


def of_device(device: Device, model: str, strengths: Mapping[str, float]) -> dict[tuple[str, str], np.ndarray]:
    """The same, as the device merges them."""
    engine, adapters = load(device, model, "f32")._engine, Adapters({}, {})
    for case, strength in strengths.items():
        changes = read_adapter(FOLDER / "lora" / f"{case}.safetensors", engine.adapter_targets)
        adapters = adapters.add(case, changes, strength, keeps=True)
    found: dict[tuple[str, str], np.ndarray] = {}
    for component, own in adapters.patches().items():
        source, g = engine.model.sources[component], Graph(component, Kernels("f32"))
        tensors = {path: g.weight(path, *engine.adapter_targets.shapes[component, path]) for path in own}
        buffers = WeightLoader(device).load(dict.fromkeys(g.weights.values(), source), {source: own})
        for path, tensor in tensors.items():
            found[component, path] = times_probe(download(device, buffers[tensor], tensor))
    return found


def times_probe(tensor: np.ndarray) -> np.ndarray:
    """In float64."""
    rows = tensor.reshape(len(tensor), -1).astype(np.float64)
    return rows @ probe(rows.shape[1])


@pytest.mark.parametrize("case", [case for case, strengths in CASES.items() if len(strengths) == 1])
def test_merged_tensors(device: Device, case: str) -> None:
    """Each tensor that PEFT changes, and no other."""
    actual, expected = of_device(device, model_of(case), {case: 1.0}), of_peft(case)
    assert set(actual) == set(expected)
    for key, vector in expected.items():
        np.testing.assert_allclose(actual[key], vector, atol=2e-5, rtol=2e-5, err_msg=str(key))


def test_several_kinds_at_once(device: Device) -> None:
    """Each takes its share of what PEFT makes of it alone."""
    strengths = {"kohya": 0.7, "loha_large": -0.4, "lokr_core": 0.25, "dora": 1.5, "dora_by_input": -0.5, "diff": 2.0}
    strengths |= {"core": 0.5, "loha_core": 0.1, "lokr": -1.0, "bias": 0.3}
    engine = load(device, "sd1", "f32")._engine
    actual = of_device(device, "sd1", strengths)
    parts = {case: of_peft(case) for case in strengths}
    assert set(actual) == set().union(*parts.values())
    for (component, path), vector in actual.items():
        shape = engine.adapter_targets.shapes[component, path]
        base = times_probe(engine.model.sources[component].read(path, shape).to_f32().reshape(shape))
        own = [
            strengths[case] * (part[component, path] - base)
            for case, part in parts.items()
            if (component, path) in part
        ]
        np.testing.assert_allclose(vector, base + sum(own), atol=5e-5, rtol=5e-5, err_msg=path)


def test_without_adapters(pipes: dict[str, StableDiffusionPipeline]) -> None:
    pipes["sd1"].unload_lora_weights()
    require_golden(pipes["sd1"], "none")
