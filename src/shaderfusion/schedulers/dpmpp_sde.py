"""DPM-Solver++ (SDE), the stochastic midpoint method in log sigma, as in k-diffusion's sample_dpmpp_sde.

Units and the UNet's input are Euler's. A step calls the model twice. With sigma_mid = sqrt(sigma sigma_prev), and for
each of the two targets s the sigma_up(s) and sigma_down(s) of Euler's method with new noise:

    r(s)   = sigma_down(s) / sigma
    x'     = r(sigma_mid) x + (1 - r(sigma_mid)) x_0(x, sigma) + sigma_up(sigma_mid) n_mid
    x_prev = r(sigma_prev) x + (1 - r(sigma_prev)) x_0(x', sigma_mid) + sigma_up(sigma_prev) n

Both noises are increments of one Brownian path over sigma, from sigma to the target, over the root of the difference.
The last step, to sigma = 0, is Euler's.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from shaderfusion.brownian import Times
from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.dpm2 import interleaved
from shaderfusion.schedulers.schedule import Schedule, Update
from shaderfusion.schedulers.sigmas import inference_sigmas, timesteps_at, trained_sigmas, with_sigmas, x0_of

__all__ = ["dpmpp_sde"]


def dpmpp_sde(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' DPMSolverSDEScheduler with its defaults: two for each step, one for the last.

    Raises InputError (number of steps) and ModelError (two spacings of sigmas at once).
    """
    config = config.with_defaults(beta_start=0.00085, beta_end=0.012)
    trained = trained_sigmas(config, zero_terminal_snr=False)
    timesteps, sigmas = inference_sigmas(config, num_inference_steps, trained)
    middles = [(sigma * sigma_prev) ** 0.5 for sigma, sigma_prev in pairwise(sigmas)]
    updates = []
    for sigma, middle, sigma_prev in zip(sigmas[:-1], middles, sigmas[1:], strict=True):
        updates += _step(sigma, middle, sigma_prev, config)
    x0_x, x0_m = x0_of(sigmas[-1], config.prediction_type)
    updates.append(Update(c_x=x0_x, c_m=x0_m))
    timesteps = interleaved(timesteps, timesteps_at(np.array(middles), trained))
    schedule = with_sigmas(config, timesteps, interleaved(sigmas, middles).tolist(), updates, calls_per_step=2)
    return replace(schedule, path_times=_times(sigmas))


def _times(sigmas: Sequence[float]) -> Times:
    """Sigmas as diffusers asks for their noise, by way of float32 logarithms: the last digit decides what it is.

    Logarithms and exponentials are rounded to the nearest here, as nearly all of torch's are on Intel's processors.
    """
    rounded = np.array(sigmas, dtype=np.float32)
    t = -np.log(rounded.astype(np.float64)).astype(np.float32)
    t_mid = t[:-1] + (t[1:] - t[:-1]) * np.float32(0.5)
    at, middles = (np.exp(-each.astype(np.float64)).astype(np.float32).tolist() for each in (t, t_mid))
    spans = [(start, end) for start, *ends in zip(at[:-1], middles, at[1:], strict=True) for end in ends]
    return Times(float(rounded.min()), float(rounded.max()), tuple(spans))


def _step(sigma: float, middle: float, sigma_prev: float, config: SchedulerConfig) -> tuple[Update, Update]:
    x0_x, x0_m = x0_of(sigma, config.prediction_type)
    r, up = _ancestral(sigma, middle)
    first = Update(c_x=r + (1 - r) * x0_x, c_m=(1 - r) * x0_m, c_noise=up, save_sample=True)
    x0_x, x0_m = x0_of(middle, config.prediction_type)
    r, up = _ancestral(sigma, sigma_prev)
    return first, Update(c_x=(1 - r) * x0_x, c_m=(1 - r) * x0_m, c_saved=r, c_noise=up)


def _ancestral(sigma: float, target: float) -> tuple[float, float]:
    """sigma_down / sigma, and sigma_up."""
    return (target / sigma) ** 2, target * (sigma**2 - target**2) ** 0.5 / sigma
