"""What is measured: a model at one image size on one device. `sd14` needs no download: its weights are random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shaderfusion.bench.values import normal
from shaderfusion.engine import Engine, Sources
from shaderfusion.gpu.device import Device, open_device
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.select import Kernels, Optimizations
from shaderfusion.models.stable_diffusion import COMPONENTS, ModelConfig, build_graphs, find_model
from shaderfusion.pipeline import choose_dtype, make_kernels
from shaderfusion.tensor import DType
from shaderfusion.weights.checkpoint import Checkpoint, StoredTensor
from shaderfusion.weights.store import WeightStore

__all__ = ["SD14", "SD14_FOLDER", "RandomCheckpoint", "Subject", "default_model", "open_subject"]

SD14 = "sd14"
"""Name of Stable Diffusion 1.4 with random weights."""

SD14_FOLDER = Path(__file__).parent / "sd14"
"""The published model's config.json files, one folder a component."""

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


@dataclass(frozen=True)
class Subject:
    """A model, with guidance, for `batch` images of one size."""

    device: Device
    model: str
    config: ModelConfig
    sources: Sources
    dtype: DType
    width_px: int
    height_px: int
    batch: int

    def kernels(self, optimizations: Optimizations | None = None) -> Kernels:
        """Those that suit the device, with all optimizations by default."""
        return make_kernels(self.device, self.dtype, optimizations)

    def graphs(self, kernels: Kernels) -> dict[str, Graph]:
        """By component."""
        size = {"height_px": self.height_px, "width_px": self.width_px}
        return build_graphs(self.config, kernels, batch=self.batch, guidance=True, **size)

    def make_engine(self, weights: WeightStore, optimizations: Optimizations | None = None) -> Engine:
        """The programs."""
        size = {"height_px": self.height_px, "width_px": self.width_px}
        kernels = self.kernels(optimizations)
        return Engine(self.device, self.config, kernels, weights, self.sources, batch=self.batch, guidance=True, **size)

    @property
    def latents_shape(self) -> tuple[int, int, int, int]:
        """(B, H, W, C)"""
        f = self.config.vae.scale_factor
        return (self.batch, self.height_px // f, self.width_px // f, self.config.unet.in_channels)

    def as_dict(self) -> dict[str, str | int]:
        """JSON-ready, what a row says of it."""
        size = {"width": self.width_px, "height": self.height_px, "batch": self.batch}
        return {"model": self.model, **size, "dtype": self.dtype}


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
) -> Subject:
    """`sd14`, an embedded model or a folder, in pixels, by default at the model's own size.

    Loads no weights. Raises ModelError, DeviceError or InputError.
    """
    opened = device if isinstance(device, Device) else open_device(device)
    model = model or default_model(opened)
    folder = SD14_FOLDER if model == SD14 else find_model(model)
    sources = {name: RandomCheckpoint() if model == SD14 else Checkpoint(folder / name) for name in COMPONENTS}
    config = ModelConfig.from_folder(folder)
    return Subject(
        device=opened,
        model=model,
        config=config,
        sources=sources,
        dtype=choose_dtype(opened, dtype),
        width_px=config.require_size("width", width),
        height_px=config.require_size("height", height),
        batch=batch,
    )
