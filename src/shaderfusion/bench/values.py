"""Random values, fast and the same in every run: standard normal, and with the spectrum of natural images."""

from __future__ import annotations

import math
import zlib
from functools import cache

import numpy as np

__all__ = ["image_like", "normal"]

_POOL_SIZE = 4_194_301
"""A prime, so that rows of no matrix of a usual size repeat."""


@cache
def _pool() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(_POOL_SIZE, np.float32)


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal f32 values, others for each name. Larger tensors repeat one pool of 4 million values."""
    size, start = math.prod(shape), zlib.crc32(name.encode()) % _POOL_SIZE
    repeats = -(-(start + size) // _POOL_SIZE)
    repeated = _pool() if repeats == 1 else np.tile(_pool(), repeats)
    return repeated[start : start + size].reshape(shape)


def image_like(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Channels (B, H, W, C) of mean 0 and variance 1 whose amplitudes fall as 1 / frequency, as those of natural
    images do (Field 1987, doi 10.1364/JOSAA.4.002379), f32."""
    _, H, W, _ = shape
    spectrum = np.fft.rfft2(normal(name, shape), axes=(1, 2))
    frequency = np.hypot(np.fft.fftfreq(H)[:, None], np.fft.rfftfreq(W)[None, :])
    frequency[0, 0] = np.inf  # no mean
    spectrum /= frequency[None, :, :, None]
    image = np.fft.irfft2(spectrum, s=(H, W), axes=(1, 2)).astype(np.float32)
    return image / image.std()
