"""Euler's method on the probability-flow ODE: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based
Generative Models", algorithm 1 without the second-order correction.

In units where x = x_0 + sigma eps, sigma = sqrt((1 - alpha) / alpha):

    x_prev = x + (sigma_prev - sigma) eps,    UNet input = x / sqrt(sigma^2 + 1)
"""

import numpy as np

from shaderfusion.config import SchedulerConfig
from shaderfusion.schedulers.noise import alphas_cumprod, inference_timesteps, prediction
from shaderfusion.schedulers.schedule import Schedule, Update, require_option

__all__ = ["euler"]

# diffusers' stand-in for alpha = 0, so that sigma stays finite (4096).
SMALLEST_ALPHA = 2.0**-24


def euler(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' EulerDiscreteScheduler; linspace timesteps are fractions, as there.

    Raises InputError (number of steps) and ModelError (an option that is not implemented).
    """
    for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        require_option(config, key, False, None)
    require_option(config, "interpolation_type", "linear")
    require_option(config, "timestep_type", "discrete")

    timesteps = inference_timesteps(config, num_inference_steps, "linspace")
    alphas = alphas_cumprod(config, zero_terminal_snr=config.rescale_betas_zero_snr)
    if config.rescale_betas_zero_snr:
        alphas[-1] = SMALLEST_ALPHA
    trained_sigmas = np.sqrt((1 - alphas) / alphas)
    sigmas = np.interp(timesteps, np.arange(len(trained_sigmas)), trained_sigmas).tolist()
    last_sigma = 0.0 if config.final_sigmas_type == "zero" else float(trained_sigmas[0])

    updates = []
    for sigma, sigma_prev in zip(sigmas, [*sigmas[1:], last_sigma], strict=True):
        p = prediction(1 / (sigma**2 + 1), config.prediction_type)
        eps_x = p.eps_x / (sigma**2 + 1) ** 0.5  # the model saw x / sqrt(sigma^2 + 1)
        updates.append(Update(c_x=1 + (sigma_prev - sigma) * eps_x, c_m=(sigma_prev - sigma) * p.eps_m))

    spacing_is_leading = config.timestep_spacing == "leading"
    return Schedule(
        init_noise_sigma=(max(sigmas) ** 2 + 1) ** 0.5 if spacing_is_leading else max(sigmas),
        timesteps=tuple(timesteps.tolist()),
        input_scales=tuple(1 / (sigma**2 + 1) ** 0.5 for sigma in sigmas),
        updates=tuple(updates),
    )
