"""Adapters of every kind, in every spelling, against PEFT and diffusers (golden/make_lora.py)."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER, load, model_folder
from kernel_runner import relative_error

from shaderfusion.gpu.device import Device
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.random import randn
from shaderfusion.weights.lora.adapters import Adapters
from shaderfusion.weights.lora.file import read_adapter

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


def run(pipe: StableDiffusionPipeline) -> tuple[np.ndarray, np.ndarray]:
    """The embedding of the golden prompt, and the UNet's output."""
    size = pipe.model.run_size(width=64 // 8 * pipe.model.scale_factor, height=8 * pipe.model.scale_factor)
    ids = np.array([FACTS["prompt_ids"]])
    embedding = pipe._engine.condition(ids, size)["embedding"]
    latents = randn((1, 4, 8, 8), 1).transpose(0, 2, 3, 1)
    inputs = {
        "latents": np.concatenate([latents, latents]),
        "timestep": np.array([FACTS["timestep"]]),
        "embedding": np.concatenate([embedding, embedding]),
    }
    output = pipe._engine.run("unet", size, inputs, ["model_output"])["model_output"]
    return embedding[0], output[0].transpose(2, 0, 1)


@pytest.fixture(scope="module")
def pipe(device: Device) -> StableDiffusionPipeline:
    """The golden model, whose adapters tests change."""
    return StableDiffusionPipeline.from_pretrained(model_folder("sd1"), device=device, dtype="f32", tuning="off")


def test_every_adapter_has_a_case() -> None:
    assert {name for strengths in CASES.values() for name in strengths} == set(ADAPTERS)


@pytest.mark.parametrize("case", CASES)
def test_networks(pipe: StableDiffusionPipeline, case: str) -> None:
    adapt(pipe, CASES[case])
    embedding, output = run(pipe)
    assert relative_error(embedding, stored()[f"{case}_embedding"]) < BOUND
    assert relative_error(output, stored()[f"{case}_output"]) < BOUND


@pytest.mark.parametrize("case", [case for case, strengths in CASES.items() if len(strengths) == 1])
def test_merged_tensors(device: Device, case: str) -> None:
    """All of them on the host: each tensor that PEFT changes, and no other."""
    engine = load(device, "sd1", "f32")._engine
    changes = read_adapter(FOLDER / "lora" / f"{case}.safetensors", engine.adapter_targets)
    patches = Adapters({}, {}).add(case, changes, 1.0, keeps=False).patches()
    expected = {tuple(key.split("/")[1:]): value for key, value in stored().items() if key.startswith(f"{case}/")}
    full = {(c, path if c == "unet" else f"text_model.{path}"): value for (c, path), value in expected.items()}
    assert {(c, path) for c, own in patches.items() for path in own} == set(full)
    for (component, path), vector in full.items():
        shape = engine.adapter_targets.shapes[component, path]
        weight = engine.model.sources[component].read(path, shape)
        merged, factors = patches[component][path].merge(weight, keep_factors=False)
        assert factors is None
        rows = merged.to_f32().reshape(shape[0], -1).astype(np.float64)
        np.testing.assert_allclose(rows @ probe(rows.shape[1]), vector, atol=2e-5, rtol=2e-5, err_msg=path)


def test_without_adapters(pipe: StableDiffusionPipeline) -> None:
    pipe.unload_lora_weights()
    embedding, output = run(pipe)
    assert relative_error(embedding, stored()["none_embedding"]) < BOUND
    assert relative_error(output, stored()["none_output"]) < BOUND
