"""Pictures of latents without a decoder: red, green and blue as a linear function of the channels of each cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from shaderfusion.images import to_pictures

__all__ = ["PROJECTIONS", "SAMPLE_CELLS", "Projection", "fit_projection", "sample_latents"]

SAMPLE_CELLS = 16
"""Sides of `sample_latents`."""


@dataclass(frozen=True, eq=False)
class Projection:
    """For latents (B, H, W, C): pixels (B, H, W, 3) = latents factors + bias, about -1..1."""

    factors: np.ndarray = field(repr=False)
    """(C, 3)"""
    bias: np.ndarray = field(repr=False)
    """(3,)"""

    def project(self, latents: np.ndarray) -> np.ndarray:
        """Pixels (B, H, W, 3), one for each cell."""
        return latents @ self.factors + self.bias

    def pictures(self, latents: np.ndarray) -> list[Image.Image]:
        """One of each row, a pixel for each cell."""
        return to_pictures(self.project(latents))


def fit_projection(latents: np.ndarray, pixels: np.ndarray) -> Projection:
    """The one with the least squared error, of latents (B, H, W, C) and their pictures (B, f H, f W, 3), in -1..1.

    A picture's pixels are averaged over each cell.
    """
    B, H, W, C = latents.shape
    f = pixels.shape[1] // H
    wanted = pixels.reshape(B, H, f, W, f, 3).mean(axis=(2, 4)).reshape(-1, 3)
    given = np.concatenate([latents.reshape(-1, C), np.ones((B * H * W, 1))], axis=1)
    solution = np.linalg.lstsq(given, wanted, rcond=None)[0].astype(np.float32)
    return Projection(solution[:-1], solution[-1])


def sample_latents(num_channels: int) -> np.ndarray:
    """Latents (4, 16, 16, C) f32 to fit a projection to, where nothing is known of those of real pictures.

    Normal values, equal in patches of 2 or 4 cells, since what a decoder makes of a cell depends on those around it; of
    half a deviation, so that few pixels leave its range, where it is least linear.
    """
    noise = np.random.default_rng(0)
    samples = []
    for patch in (2, 2, 4, 4):
        cells = SAMPLE_CELLS // patch
        values = 0.5 * noise.standard_normal((cells, cells, num_channels))
        samples.append(np.kron(values, np.ones((patch, patch, 1))))
    return np.stack(samples).astype(np.float32)


def _projection(*rows: tuple[float, float, float], bias: tuple[float, float, float] = (0, 0, 0)) -> Projection:
    return Projection(np.array(rows, np.float32), np.array(bias, np.float32))


PROJECTIONS: Mapping[float, Projection] = {
    # Stable Diffusion 1 and 2, and SDXL: the factors that ComfyUI publishes (comfy/latent_formats.py, SD15 and SDXL).
    0.18215: _projection(
        (0.3512, 0.2297, 0.3227),
        (0.3250, 0.4974, 0.2350),
        (-0.2829, 0.1762, 0.2721),
        (-0.2120, -0.2616, -0.7177),
    ),
    0.13025: _projection(
        (0.3651, 0.4232, 0.4341),
        (-0.2533, -0.0042, 0.1068),
        (0.1076, 0.1111, -0.0362),
        (-0.3165, -0.2492, -0.2188),
        bias=(0.1084, -0.0175, -0.0011),
    ),
    # The embedded model: benchmarks/fit_previews.py.
    0.618102: _projection(
        (0.0895, -0.2112, 0.1405),
        (0.0087, 0.2202, 0.3946),
        (-0.5626, -0.0270, 0.0214),
        (-0.1476, 0.5770, 0.8740),
        bias=(0.6593, 0.5344, 0.5219),
    ),
}
"""By the scaling_factor of their autoencoders, which tells latent spaces apart: a retrained decoder keeps it."""
