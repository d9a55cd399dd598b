"""Noise levels of rules in units where x = x_0 + sigma eps, with sigma = sqrt((1 - alpha) / alpha).

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models".
"""

from typing import Literal

import numpy as np

from shaderfusion.config import SchedulerConfig
from shaderfusion.schedulers.noise import alphas_cumprod, inference_timesteps, prediction
from shaderfusion.schedulers.schedule import Schedule, Update

__all__ = [
    "inference_sigmas",
    "karras_sigmas",
    "sigmas_at",
    "slope",
    "timesteps_at",
    "trained_sigmas",
    "with_sigmas",
]

# diffusers' stand-in for alpha = 0, so that sigma stays finite (4096).
SMALLEST_ALPHA = 2.0**-24


def trained_sigmas(config: SchedulerConfig, *, zero_terminal_snr: bool) -> np.ndarray:
    """sigma of each training timestep: (num_train_timesteps,), rising.

    From alpha in float32, as in diffusers: the difference, which 1 - alpha makes large at the first timesteps, decides
    how some timesteps of `karras_sigmas` are rounded.
    """
    alphas = alphas_cumprod(config, zero_terminal_snr=zero_terminal_snr).astype(np.float32)
    if zero_terminal_snr:
        alphas[-1] = SMALLEST_ALPHA
    return np.sqrt((1 - alphas) / alphas).astype(np.float64)


def sigmas_at(timesteps: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """sigma at timesteps that may be fractions, by linear interpolation."""
    return np.interp(timesteps, np.arange(len(trained)), trained)


def timesteps_at(sigmas: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """The timesteps, as fractions, whose sigma it is, by linear interpolation of log sigma."""
    return np.interp(np.log(sigmas), np.log(trained), np.arange(len(trained)))


def karras_sigmas(largest: float, smallest: float, num_inference_steps: int) -> np.ndarray:
    """From the largest to the smallest, evenly spaced in sigma^(1/7): equation 5 there."""
    rho = 7
    return np.linspace(largest ** (1 / rho), smallest ** (1 / rho), num_inference_steps) ** rho


def inference_sigmas(
    config: SchedulerConfig, num_inference_steps: int, trained: np.ndarray, *, karras: bool
) -> tuple[np.ndarray, list[float]]:
    """The timesteps, as fractions, and the sigmas that a run visits; `karras` spaces the latter between their ends."""
    timesteps = inference_timesteps(config, num_inference_steps, "linspace")
    sigmas = sigmas_at(timesteps, trained)
    if karras:
        sigmas = karras_sigmas(sigmas[0], sigmas[-1], num_inference_steps)
        timesteps = timesteps_at(sigmas, trained)
    return timesteps, sigmas.tolist()


def slope(sigma: float, prediction_type: Literal["epsilon", "v_prediction"]) -> tuple[float, float]:
    """Coefficients of x and of the model output m in dx / dsigma = eps; the model sees x / sqrt(sigma^2 + 1)."""
    p = prediction(1 / (sigma**2 + 1), prediction_type)
    return p.eps_x / (sigma**2 + 1) ** 0.5, p.eps_m


def with_sigmas(config: SchedulerConfig, timesteps: np.ndarray, sigmas: list[float], updates: list[Update]) -> Schedule:
    """The schedule of steps that begin at these timesteps and sigmas."""
    largest, spacing_is_leading = max(sigmas), config.timestep_spacing == "leading"
    return Schedule(
        init_noise_sigma=(largest**2 + 1) ** 0.5 if spacing_is_leading else largest,
        timesteps=tuple(timesteps.tolist()),
        input_scales=tuple(1 / (sigma**2 + 1) ** 0.5 for sigma in sigmas),
        updates=tuple(updates),
        alphas=tuple(1 / (sigma**2 + 1) for sigma in sigmas),
    )
