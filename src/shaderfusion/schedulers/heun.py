"""Heun's method on the probability-flow ODE: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based
Generative Models", algorithm 1.

Units and the UNet's input are Euler's. A step calls the model twice, and goes from x by the mean of both slopes:

    x' = x + (sigma_prev - sigma) eps(x, sigma),    x_prev = x + (sigma_prev - sigma) (eps + eps(x', sigma_prev)) / 2

The last step, to sigma = 0, is Euler's.
"""

from itertools import pairwise

import numpy as np

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.schedule import Schedule, Update, require_option
from shaderfusion.schedulers.sigmas import inference_sigmas, slope, trained_sigmas, with_sigmas

__all__ = ["heun"]


def heun(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' HeunDiscreteScheduler with its defaults: two for each step, one for the last.

    Raises InputError (number of steps) and ModelError (an option that is not implemented).
    """
    require_option(config, "clip_sample", False, None)
    config = config.with_defaults(beta_start=0.00085, beta_end=0.012)
    trained = trained_sigmas(config, zero_terminal_snr=False)
    timesteps, sigmas = inference_sigmas(config, num_inference_steps, trained)

    updates = []
    for sigma, sigma_prev in pairwise(sigmas):
        step = sigma_prev - sigma
        eps_x, eps_m = slope(sigma, config.prediction_type)
        updates.append(Update(c_x=1 + step * eps_x, c_m=step * eps_m, h_x=eps_x, h_m=eps_m, save_sample=True))
        eps_x, eps_m = slope(sigma_prev, config.prediction_type)
        updates.append(Update(c_saved=1.0, c_h1=step / 2, c_x=step / 2 * eps_x, c_m=step / 2 * eps_m))
    eps_x, eps_m = slope(sigmas[-1], config.prediction_type)
    updates.append(Update(c_x=1 - sigmas[-1] * eps_x, c_m=-sigmas[-1] * eps_m))
    timesteps, sigmas = np.repeat(timesteps, 2)[1:], np.repeat(sigmas, 2)[1:]
    return with_sigmas(config, timesteps, sigmas.tolist(), updates, calls_per_step=2)
