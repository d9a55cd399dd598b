"""The three networks on one device for one image size: programs, their shared memory, and the tensors between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph, Weight, WeightLayout
from shaderfusion.graph.program import Buffers, Program
from shaderfusion.kernels.common.denoise_step import COEFFICIENTS, NUM_COEFFICIENTS
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.stable_diffusion import COMPONENTS, ModelConfig, build_graphs
from shaderfusion.schedulers import Update
from shaderfusion.weights.checkpoint import Checkpoint
from shaderfusion.weights.prepare import load_weights

__all__ = ["Engine", "WeightStore", "load_all_weights"]


class WeightStore:
    """A model's weights on a device, each in the layout that the last graph asked for it."""

    def __init__(self, device: Device, folder: Path) -> None:
        self._device = device
        self._checkpoints = {name: Checkpoint(folder / name) for name in COMPONENTS}
        self._loaded: dict[str, tuple[WeightLayout, Any]] = {}

    def load(self, graph: Graph) -> Buffers:
        """Buffers of the graph's weights. Those not loaded yet, or in another layout, are read from the files."""

        def is_loaded(weight: Weight) -> bool:
            return self._loaded.get(weight.tensor.name, (None,))[0] == weight.layout

        missing = [weight for weight in graph.weights.values() if not is_loaded(weight)]
        buffers = load_weights(self._device, missing, self._checkpoints[graph.name])
        self._loaded |= {weight.tensor.name: (weight.layout, buffers[weight.tensor]) for weight in missing}
        return {weight.tensor: self._loaded[weight.tensor.name][1] for weight in graph.weights.values()}


def load_all_weights(device: Device, config: ModelConfig, kernels: Kernels, folder: Path) -> WeightStore:
    """Weights of all components, for images of the model's own size."""
    side_px = config.require_size("width", None)
    store = WeightStore(device, folder)
    for graph in build_graphs(config, kernels, batch=1, height_px=side_px, width_px=side_px, guidance=True).values():
        store.load(graph)
    return store


class Engine:
    """Programs for `batch` images of one size. Latents are (B, H, W, C) on the device."""

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        kernels: Kernels,
        weights: WeightStore,
        *,
        batch: int,
        height_px: int,
        width_px: int,
        guidance: bool,
    ) -> None:
        graphs = build_graphs(config, kernels, batch=batch, height_px=height_px, width_px=width_px, guidance=guidance)
        external: Buffers = {}
        for graph in graphs.values():
            external |= weights.load(graph)
        memory: list[Any] = []  # of intermediate tensors: the programs share it, as they never run at the same time
        # The decoder needs most, so that it comes first and nothing has to grow.
        self.vae, self.unet, self.text_encoder = (
            Program(device, graphs[name], external, memory) for name in ("vae", "unet", "text_encoder")
        )

    def encode(self, token_ids: np.ndarray) -> np.ndarray:
        """Prompt embeddings (B, L, C) of token ids (B, L), one after the other."""
        return np.concatenate([self._encode(row[None]) for row in token_ids])

    def _encode(self, token_ids: np.ndarray) -> np.ndarray:
        self.text_encoder.write("token_ids", token_ids)
        self.text_encoder.run()
        return self.text_encoder.read("embedding")

    def start(self, embeddings: np.ndarray, x_t: np.ndarray, input_scale: float) -> None:
        """Sets the prompt embedding of each row of the UNet's batch, and the first x_t (B, H, W, C)."""
        self.unet.write("embedding", embeddings)
        self.unet.write("x_t", x_t)
        copies = len(embeddings) // len(x_t)  # 2 with guidance
        self.unet.write("latents", np.tile(input_scale * x_t, (copies, 1, 1, 1)))

    def step(self, timestep: float, update: Update, *, guidance_scale: float, next_input_scale: float) -> None:
        """One UNet iteration, then guidance and the scheduler's update. Waits for the GPU."""
        values = {**vars(update), "guidance_scale": guidance_scale, "next_input_scale": next_input_scale}
        coefficients = np.zeros(NUM_COEFFICIENTS)
        coefficients[: len(COEFFICIENTS)] = [values[name] for name in COEFFICIENTS]
        self.unet.write("coefficients", coefficients)
        self.unet.write("timestep", np.array([timestep]))
        self.unet.run()
        self.unet.read("coefficients")

    def decode(self) -> np.ndarray:
        """The images (B, height, width, 3), in -1..1, of the latents as they are now."""
        return np.concatenate([self._decode(row[None]) for row in self.unet.read("x_t")])

    def _decode(self, latents: np.ndarray) -> np.ndarray:
        self.vae.write("latents", latents)
        self.vae.run()
        return self.vae.read("image")[..., :3].astype(np.float32)
