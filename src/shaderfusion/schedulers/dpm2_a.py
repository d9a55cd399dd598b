"""DPM-Solver-2 with new noise in each step, k-diffusion's sample_dpm_2_ancestral.

A step is that of DPM2, to sigma_down instead of sigma_prev, and new noise makes up for the rest, as in Euler's with new
noise:

    sigma_up^2 = sigma_prev^2 (sigma^2 - sigma_prev^2) / sigma^2,    sigma_down^2 = sigma_prev^2 - sigma_up^2
"""

from itertools import pairwise

import numpy as np

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.dpm2 import interleaved, midpoint_sigmas, midpoint_step
from shaderfusion.schedulers.schedule import Schedule
from shaderfusion.schedulers.sigmas import timesteps_at, with_sigmas

__all__ = ["dpm2_a"]


def dpm2_a(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' KDPM2AncestralDiscreteScheduler with its defaults: two for each step, of which the
    second adds noise, and one for the last.

    Raises InputError (number of steps) and ModelError (two spacings of sigmas at once).
    """
    config, timesteps, sigmas, trained = midpoint_sigmas(config, num_inference_steps)
    updates, middles = [], []
    for sigma, sigma_prev in pairwise(sigmas):
        sigma_up = sigma_prev * (sigma**2 - sigma_prev**2) ** 0.5 / sigma
        sigma_down = sigma_prev**2 / sigma
        middles.append((sigma * sigma_down) ** 0.5)
        updates += midpoint_step(sigma, middles[-1], sigma_down, sigma_up, config)
    updates.append(midpoint_step(sigmas[-1], 0.0, 0.0, 0.0, config)[0])
    timesteps = interleaved(timesteps, timesteps_at(np.array(middles), trained))
    return with_sigmas(config, timesteps, interleaved(sigmas, middles).tolist(), updates, calls_per_step=2)
