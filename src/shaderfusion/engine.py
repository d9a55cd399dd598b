"""The three networks on one device for one image size: programs, their shared memory, and the tensors between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shaderfusion.errors import ModelError
from shaderfusion.gpu.device import Device
from shaderfusion.graph.program import Buffers, Program
from shaderfusion.kernels.common.denoise_step import COEFFICIENTS, NUM_COEFFICIENTS
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.clip import TOKEN_TABLE
from shaderfusion.models.stable_diffusion import ModelConfig, build_graphs
from shaderfusion.schedulers import Update
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.prepare import read_rows
from shaderfusion.weights.store import WeightStore

__all__ = ["Engine", "Sources", "load_all_weights"]

Sources = Mapping[str, TensorSource]
"""Where each component's weights come from."""


def load_all_weights(device: Device, config: ModelConfig, kernels: Kernels, sources: Sources) -> WeightStore:
    """Weights of all components, for images of the model's own size."""
    side_px = config.require_size("width", None)
    store = WeightStore(device)
    graphs = build_graphs(config, kernels, batch=1, height_px=side_px, width_px=side_px, guidance=True)
    for name, graph in graphs.items():
        store.load(graph, sources[name])
        store.release(graph)
    return store


class Engine:
    """Programs for `batch` images of one size. Latents are (B, H, W, C) on the device."""

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        kernels: Kernels,
        weights: WeightStore,
        sources: Sources,
        *,
        batch: int,
        height_px: int,
        width_px: int,
        guidance: bool,
    ) -> None:
        graphs = build_graphs(config, kernels, batch=batch, height_px=height_px, width_px=width_px, guidance=guidance)
        external: Buffers = {}
        for name, graph in graphs.items():
            external |= weights.load(graph, sources[name])
        self._weights = weights
        self._sources = sources
        memory: list[Any] = []  # of intermediate tensors: the programs share it, as they never run at the same time
        # The decoder, which needs most, comes first, so that hardly a buffer has to grow.
        self.vae, self.unet, self.text_encoder = (
            Program(device, graphs[name], external, memory) for name in ("vae", "unet", "text_encoder")
        )

    def close(self) -> None:
        """The programs run no more."""
        for program in (self.vae, self.unet, self.text_encoder):
            self._weights.release(program.graph)

    def encode(self, token_ids: np.ndarray) -> np.ndarray:
        """Prompt embeddings (B, L, C) of token ids (B, L), one after the other; ModelError for an unknown id."""
        vocab_size, _ = self.text_encoder.graph.tables[TOKEN_TABLE].source_shape
        unknown = token_ids[(token_ids < 0) | (token_ids >= vocab_size)]
        if unknown.size:
            raise ModelError(
                f"token id (={unknown[0]}) must be from 0 to text_encoder's vocab_size (={vocab_size}) less 1; "
                "take the tokenizer and the text encoder of one model"
            )
        return np.concatenate([self._encode(row[None]) for row in token_ids])

    def _encode(self, token_ids: np.ndarray) -> np.ndarray:
        table = self.text_encoder.graph.tables[TOKEN_TABLE]
        tokens = read_rows(self._sources["text_encoder"], table, token_ids)
        self.text_encoder.write(TOKEN_TABLE, tokens)
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
