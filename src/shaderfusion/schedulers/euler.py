"""Euler's method on the probability-flow ODE: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based
Generative Models", algorithm 1 without the second-order correction.

In units where x = x_0 + sigma eps, sigma = sqrt((1 - alpha) / alpha):

    x_prev = x + (sigma_prev - sigma) eps,    UNet input = x / sqrt(sigma^2 + 1)
"""

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.schedule import Schedule, Update, require_option
from shaderfusion.schedulers.sigmas import inference_sigmas, slope, spacing_of_sigmas, trained_sigmas, with_sigmas

__all__ = ["euler"]


def euler(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' EulerDiscreteScheduler; linspace timesteps are fractions, as there.

    Raises InputError (number of steps) and ModelError (an option that is not implemented).
    """
    require_option(config, "interpolation_type", "linear")
    require_option(config, "timestep_type", "discrete")
    if spacing_of_sigmas(config):
        for key in ("sigma_min", "sigma_max"):
            require_option(config, key, None)
    trained = trained_sigmas(config, zero_terminal_snr=config.rescale_betas_zero_snr)
    timesteps, sigmas = inference_sigmas(config, num_inference_steps, trained)
    last_sigma = 0.0 if config.final_sigmas_type == "zero" else float(trained[0])

    updates = []
    for sigma, sigma_prev in zip(sigmas, [*sigmas[1:], last_sigma], strict=True):
        eps_x, eps_m = slope(sigma, config.prediction_type)
        updates.append(Update(c_x=1 + (sigma_prev - sigma) * eps_x, c_m=(sigma_prev - sigma) * eps_m))
    return with_sigmas(config, timesteps, sigmas, updates)
