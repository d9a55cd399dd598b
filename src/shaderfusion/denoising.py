"""What goes into one denoising step: where a run stands before it, and what it is given. All of it lies on the host."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from shaderfusion.families.family import BESIDE_LATENTS, Conditioning
from shaderfusion.families.run_size import RunSize
from shaderfusion.kernels.common.denoise_step import COEFFICIENTS
from shaderfusion.schedulers import Update

__all__ = ["DenoisingState", "Step"]


@dataclass(eq=False)
class DenoisingState:
    """Where a run stands between two steps, on the host: the device may serve another run meanwhile."""

    size: RunSize
    conditioning: Conditioning = field(repr=False)
    """Those of prompts have a row for each of the denoiser's batch."""
    x_t: np.ndarray = field(repr=False)
    """(B, H, W, C) f32"""
    input_scale: float
    """Of the next step's input, which is input_scale x_t."""
    carried: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """The other tensors that the last step left; empty before the first."""

    def inputs(self, dtype: Any) -> dict[str, np.ndarray]:
        """All that a denoiser of that NumPy dtype, and the update after it, have to hold before the next step."""
        inputs = {**self.conditioning, **self.carried, "x_t": self.x_t}
        beside = inputs.pop(BESIDE_LATENTS, None)
        if "latents" not in inputs or inputs["latents"].dtype != dtype:
            copies = self.size.rows // self.size.batch
            latents = np.tile(np.float32(self.input_scale) * self.x_t, (copies, 1, 1, 1))
            if beside is not None:  # a step's update leaves these channels as they are
                beside = np.broadcast_to(beside, (*latents.shape[:3], beside.shape[3]))
                latents = np.concatenate([latents, beside], axis=3)
            inputs["latents"] = latents
        return inputs

    def with_latents(self, x_t: np.ndarray) -> DenoisingState:
        """The same but for x_t, (B, H, W, C) f32. No device holds it yet."""
        carried = {name: array for name, array in self.carried.items() if name != "latents"}  # made of x_t
        return replace(self, x_t=x_t, carried=carried)


@dataclass(frozen=True, eq=False)
class Step:
    """What one denoising step is given beside the state."""

    timestep: float
    update: Update
    guidance_scale: float
    next_input_scale: float
    noise: np.ndarray | None = field(default=None, repr=False)
    """(B, H, W, C), where the update has c_noise."""

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """By name, those of the denoiser and of the update after it."""
        values = {
            **vars(self.update),
            "guidance_scale": self.guidance_scale,
            "next_input_scale": self.next_input_scale,
        }
        inputs = {"coefficients": np.array([values[key] for key in COEFFICIENTS])}
        inputs["timestep"] = np.array([self.timestep])
        return inputs if self.noise is None else {**inputs, "noise": self.noise}

    def guided(self, model_output: np.ndarray, batch: int, text_weights: np.ndarray | None = None) -> np.ndarray:
        """m of `schedulers.Update`, (B, H, W, C) f32, of all rows of the denoiser's output, (B or (1 + K) B, H, W, C).

        text_weights (K, B) are those of K texts for each picture, by default 1.
        """
        rows = model_output.astype(np.float32)
        eps_uncond, *texts = np.split(rows, len(rows) // batch)
        weights = np.ones((len(texts), batch), np.float32) if text_weights is None else text_weights
        differences = (w[:, None, None, None] * (text - eps_uncond) for w, text in zip(weights, texts, strict=True))
        return eps_uncond + np.float32(self.guidance_scale) * sum(differences, start=np.zeros_like(eps_uncond))
