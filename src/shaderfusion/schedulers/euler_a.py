"""Euler's method with new noise in each step, "ancestral" sampling, as in k-diffusion's sample_euler_ancestral.

A step goes down to sigma_down, below sigma_prev, and new noise makes up for the rest:

    sigma_up^2 = sigma_prev^2 (sigma^2 - sigma_prev^2) / sigma^2,    sigma_down^2 = sigma_prev^2 - sigma_up^2
    x_prev     = x + (sigma_down - sigma) eps + sigma_up noise

so that, as in DDPM (Ho et al. 2020, section 3.2, the smaller variance), x_prev has the distribution of x_0 noised to
sigma_prev. Units and the UNet's input are Euler's.
"""

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.schedule import Schedule, Update
from shaderfusion.schedulers.sigmas import inference_sigmas, slope, trained_sigmas, with_sigmas

__all__ = ["euler_a"]


def euler_a(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' EulerAncestralDiscreteScheduler, which reads no option of sigmas; the last step adds
    no noise. Raises InputError (number of steps).
    """
    trained = trained_sigmas(config, zero_terminal_snr=config.rescale_betas_zero_snr)
    timesteps, sigmas = inference_sigmas(config, num_inference_steps, trained, reads_spacing=False)

    updates = []
    for sigma, sigma_prev in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        sigma_up = sigma_prev * (sigma**2 - sigma_prev**2) ** 0.5 / sigma
        sigma_down = sigma_prev**2 / sigma
        eps_x, eps_m = slope(sigma, config.prediction_type)
        step = sigma_down - sigma
        updates.append(Update(c_x=1 + step * eps_x, c_m=step * eps_m, c_noise=sigma_up))
    return with_sigmas(config, timesteps, sigmas, updates)
