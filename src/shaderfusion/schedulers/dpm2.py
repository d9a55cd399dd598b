"""DPM-Solver-2 in k-diffusion's form, sample_dpm_2: the midpoint method in log sigma, as Karras et al. 2022 (arXiv
2206.00364, algorithm 2) without new noise.

Units and the UNet's input are Euler's. A step calls the model twice, and goes from x by the second slope alone:

    sigma_mid = sqrt(sigma sigma_prev),    x' = x + (sigma_mid - sigma) eps(x, sigma)
    x_prev    = x + (sigma_prev - sigma) eps(x', sigma_mid)

The last step, to sigma = 0, is Euler's.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.schedule import Schedule, Update
from shaderfusion.schedulers.sigmas import inference_sigmas, slope, timesteps_at, trained_sigmas, with_sigmas

__all__ = ["dpm2", "interleaved", "midpoint_sigmas", "midpoint_step"]


def dpm2(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' KDPM2DiscreteScheduler with its defaults: two for each step, one for the last.

    Raises InputError (number of steps) and ModelError (two spacings of sigmas at once).
    """
    config, timesteps, sigmas, trained = midpoint_sigmas(config, num_inference_steps)
    middles = [(sigma * sigma_prev) ** 0.5 for sigma, sigma_prev in pairwise(sigmas)]
    updates = []
    for sigma, middle, sigma_prev in zip(sigmas[:-1], middles, sigmas[1:], strict=True):
        updates += midpoint_step(sigma, middle, sigma_prev, 0.0, config)
    updates.append(midpoint_step(sigmas[-1], 0.0, 0.0, 0.0, config)[0])
    timesteps = interleaved(timesteps, timesteps_at(np.array(middles), trained))
    return with_sigmas(config, timesteps, interleaved(sigmas, middles).tolist(), updates, calls_per_step=2)


def midpoint_sigmas(
    config: SchedulerConfig, num_inference_steps: int
) -> tuple[SchedulerConfig, np.ndarray, list[float], np.ndarray]:
    """The configuration with these rules' defaults, timesteps and sigmas of the first calls, and sigmas of training."""
    config = config.with_defaults(beta_start=0.00085, beta_end=0.012)
    trained = trained_sigmas(config, zero_terminal_snr=False)
    timesteps, sigmas = inference_sigmas(config, num_inference_steps, trained)
    return config, timesteps.round() if config.use_karras_sigmas else timesteps, sigmas, trained


def midpoint_step(
    sigma: float, middle: float, end: float, c_noise: float, config: SchedulerConfig
) -> tuple[Update, Update]:
    """From sigma to `middle` by the slope there, then from sigma again, to `end`, by the slope at `middle`."""
    eps_x, eps_m = slope(sigma, config.prediction_type)
    step = middle - sigma
    first = Update(c_x=1 + step * eps_x, c_m=step * eps_m, save_sample=True)
    eps_x, eps_m = slope(middle, config.prediction_type)
    step = end - sigma
    return first, Update(c_saved=1.0, c_x=step * eps_x, c_m=step * eps_m, c_noise=c_noise)


def interleaved(firsts: Sequence[float] | np.ndarray, seconds: Sequence[float] | np.ndarray) -> np.ndarray:
    """first, second, first, ..., first, of which there is one more."""
    result = np.empty(len(firsts) + len(seconds))
    result[::2], result[1::2] = firsts, seconds
    return result
