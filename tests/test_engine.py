"""The text encoder's input, rows of a table that stays in its file, and the noise of a step."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.models import golden, load, model_folder
from safetensors.numpy import load_file, save_file

from shaderfusion.denoising import DenoisingState, Step
from shaderfusion.errors import ModelError, WeightsError
from shaderfusion.gpu.device import Device
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.schedulers import Update
from shaderfusion.tensor import DType

VOCABULARY_SIZE = 714
TOKENS = golden("sd2").token_ids  # (2, L)
TABLE = "embeddings.token_embedding.weight"


def encode(pipe: StableDiffusionPipeline, tokens: np.ndarray) -> np.ndarray:
    """The embeddings of rows of token ids."""
    return pipe._engine.condition(tokens, pipe.model.run_size())["embedding"]


def load_changed(
    device: Device, folder: Path, dtype: DType, change: Callable[[np.ndarray], Any]
) -> StableDiffusionPipeline:
    """The model with another token table, in f32; without one where `change` returns None."""
    shutil.copytree(model_folder("sd2"), folder)
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    (name,) = (name for name in tensors if name.endswith(TABLE))
    table = change(tensors.pop(name).astype(np.float32))
    save_file(tensors if table is None else {**tensors, name: table}, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shaderfusion.pipeline.open_device", lambda *_, **__: device)
        return StableDiffusionPipeline.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("token_id", [VOCABULARY_SIZE, -1, 2**31 - 1])
def test_ids_that_the_table_lacks(device: Device, token_id: int) -> None:
    tokens = TOKENS.copy()
    tokens[1, 3] = token_id
    message = (
        rf"token id \(={token_id}\) must be from 0 to text_encoder's vocab_size \(=714\) less 1, or .* of one model"
    )
    with pytest.raises(ModelError, match=message):
        encode(load(device, "sd2", "f32"), tokens)


def test_the_last_row(device: Device) -> None:
    tokens = np.full_like(TOKENS, VOCABULARY_SIZE - 1)
    assert np.isfinite(encode(load(device, "sd2", "f32"), tokens)).all()


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.nan, "f32", "has NaN or infinite values; the file is damaged, download it again"),
        (-np.inf, "f16", "has NaN or infinite values; the file is damaged, download it again"),
        (1e5, "f16", "has values over the range of f16; use dtype f32"),
    ],
)
def test_rows_that_are_not_numbers(device: Device, tmp_path: Path, value: float, dtype: DType, message: str) -> None:
    unused = np.setdiff1d(np.arange(VOCABULARY_SIZE), TOKENS)[0]

    def damage(table: np.ndarray) -> np.ndarray:
        table[unused, 5] = value
        return table

    pipe = load_changed(device, tmp_path / "model", dtype, damage)
    assert np.isfinite(encode(pipe, TOKENS)).all()
    tokens = TOKENS.copy()
    tokens[1, 3] = unused
    with pytest.raises(WeightsError, match=rf"text_encoder.text_model.{TABLE}: {message}"):
        encode(pipe, tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: None, rf"lack the tensor text_model.{TABLE}"),
        (lambda table: table[:-1], rf"{TABLE} has shape \(713, 24\), must be \(714, 24\)"),
        (lambda table: table.T.copy(), rf"{TABLE} has shape \(24, 714\), must be \(714, 24\)"),
    ],
    ids=["missing", "short", "transposed"],
)
def test_the_table_is_checked_before_anything_is_uploaded(
    device: Device, tmp_path: Path, change: Callable[[np.ndarray], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocated: list[str] = []
    monkeypatch.setattr("shaderfusion.weights.prepare.allocate", lambda *_: allocated.append("memory"))
    with pytest.raises(WeightsError, match=message):
        load_changed(device, tmp_path / "model", "f32", change)
    assert allocated == []


def test_noise_of_an_update(device: Device) -> None:
    pipe = load(device, "sd2", "f32")
    size = pipe.model.run_size(width=16, height=16)
    conditioning = {"embedding": encode(pipe, TOKENS)}
    x_t, noise = np.random.default_rng(0).standard_normal((2, *pipe.model.latents_shape(size))).astype(np.float32)
    state = DenoisingState(size, conditioning, x_t, 1.0)
    pipe._engine.denoise(state, Step(1.0, Update(c_x=0.5, c_noise=0.25), 2.0, 1.0, noise))
    np.testing.assert_allclose(state.x_t, 0.5 * x_t + 0.25 * noise, atol=1e-6)
    pipe._engine.denoise(state, Step(1.0, Update(c_noise=0.25), 2.0, 1.0, 2 * noise))
    np.testing.assert_allclose(state.x_t, 0.5 * noise, atol=1e-6)
