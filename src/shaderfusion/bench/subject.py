"""What is measured: a model at one image size on one device. `sd14` needs no download: its weights are random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shaderfusion.bench.values import normal
from shaderfusion.engine import Engine
from shaderfusion.families import family_of, open_model
from shaderfusion.families.family import Family
from shaderfusion.families.run_size import Memory, RunSize
from shaderfusion.gpu.device import Device, open_device
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.kernels.tuning import NO_TUNING, Tuning
from shaderfusion.pipeline import choose_dtype
from shaderfusion.tensor import DType
from shaderfusion.tuning_file import find_tuning
from shaderfusion.weights.checkpoint import StoredTensor, TensorSource
from shaderfusion.weights.model_files import ModelFolder

__all__ = [
    "RANDOM_MODELS",
    "SD14",
    "SD14_FOLDER",
    "RandomCheckpoint",
    "RandomFolder",
    "Subject",
    "default_model",
    "open_subject",
]

SD14 = "sd14"

RANDOM_MODELS = {name: Path(__file__).parent / name for name in (SD14, "sd21", "sdxl")}
"""Stable Diffusion 1.4, 2.1 and XL with random weights: the published models' JSON files, one folder a component."""

SD14_FOLDER = RANDOM_MODELS[SD14]

_BIAS_SCALE = 0.02


class RandomCheckpoint:
    """Random weights in place of a component's files: whatever tensor is asked for exists.

    Weights of layers are normal with variance 1 / fan-in, which keeps activations in the range of f16, a
    norm's weights are 1, and biases are small.
    """

    def find(self, path: str, shape: tuple[int, ...]) -> str:
        """The tensor's name, `path` itself."""
        return path

    def read(self, path: str, shape: tuple[int, ...]) -> StoredTensor:
        """The tensor, f32."""
        if len(shape) > 1:
            values = normal(path, shape) * np.float32(math.prod(shape[1:]) ** -0.5)
        else:
            is_bias = not path.endswith("weight")
            values = normal(path, shape) * np.float32(_BIAS_SCALE) if is_bias else np.ones(shape, np.float32)
        return StoredTensor("F32", values.reshape(-1).view(np.uint8))

    def read_rows(self, path: str, shape: tuple[int, ...], rows: np.ndarray) -> StoredTensor:
        """Rows of a table, f32: (*rows.shape, *shape[1:])."""
        row_of = {row: self.read(f"{path}[{row}]", (1, *shape[1:])).data for row in np.unique(rows).tolist()}
        return StoredTensor("F32", np.concatenate([row_of[row] for row in rows.reshape(-1).tolist()]))


class RandomFolder(ModelFolder):
    """A folder with configurations alone: its weights are random."""

    def tensors(self, component: str) -> TensorSource:
        """Whatever tensor is asked for exists."""
        return RandomCheckpoint()


@dataclass(frozen=True)
class Subject:
    """A model, with guidance, for `batch` images of one size."""

    device: Device
    name: str
    model: Family
    dtype: DType
    size: RunSize
    tuning: Tuning = NO_TUNING
    memory: Memory = "normal"

    def kernels(self, optimizations: Optimizations | None = None) -> Kernels:
        """Those that suit the device, with all optimizations by default."""
        return Kernels(self.dtype, self.device.capabilities, optimizations or Optimizations(), self.tuning)

    def graphs(self, kernels: Kernels) -> dict[str, Graph]:
        """By network."""
        return self.model.record(kernels, self.size, self.memory)

    def make_engine(self, optimizations: Optimizations | None = None) -> Engine:
        """The model on the device; nothing is loaded yet."""
        return Engine(self.device, self.model, self.kernels(optimizations), self.memory)

    @property
    def latents_shape(self) -> tuple[int, int, int, int]:
        """(B, H, W, C)"""
        return self.model.latents_shape(self.size)

    def as_dict(self) -> dict[str, str | int]:
        """JSON-ready, what a row says of it."""
        size = {"width": self.size.width_px, "height": self.size.height_px, "batch": self.size.batch}
        return {"model": self.name, **size, "dtype": self.dtype, "tuning": self.tuning.source, "memory": self.memory}


def default_model(device: Device) -> str:
    """`sd14`, but `emoji` where the device is a CPU, on which an iteration of sd14 takes minutes."""
    return "emoji" if device.info.kind == "CPU" else SD14


def open_subject(
    model: str | None = None,
    *,
    device: Device | int | str | None = None,
    dtype: DType | None = None,
    width: int | None = None,
    height: int | None = None,
    batch: int = 1,
    tuning: str | Path = "off",
    memory: Memory = "normal",
) -> Subject:
    """One of RANDOM_MODELS, an embedded model or a folder, in pixels, by default at the model's own size.

    `tuning` and `memory`, normal or high, are those of `StableDiffusionPipeline.from_pretrained`.

    Loads no weights. Raises ModelError, DeviceError or InputError.
    """
    opened = device if isinstance(device, Device) else open_device(device)
    name = default_model(opened) if model is None else model
    found = family_of(RandomFolder(RANDOM_MODELS[name])) if name in RANDOM_MODELS else open_model(name)
    size = found.run_size(batch=batch, width=width, height=height)
    chosen = choose_dtype(opened, dtype)
    found.require_fits(size, opened.capabilities, chosen)
    return Subject(opened, name, found, chosen, size, find_tuning(tuning, opened.info, chosen), memory)
