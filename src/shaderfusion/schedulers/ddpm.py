"""Ancestral sampling of diffusion models: Ho, Jain and Abbeel 2020, "Denoising Diffusion Probabilistic Models",
algorithm 2 with equation 7.

With beta = 1 - alpha / alpha_prev, from the timestep to the next one that is visited:

    x_prev   = sqrt(alpha_prev) beta / (1 - alpha) x_0 + sqrt(alpha / alpha_prev) (1 - alpha_prev) / (1 - alpha) x
               + sqrt(variance) noise
    variance = (1 - alpha_prev) / (1 - alpha) beta, or beta itself (section 3.2)
"""

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.noise import alphas_cumprod, inference_timesteps, prediction, require_signal
from shaderfusion.schedulers.schedule import Schedule, Update, require_option

__all__ = ["ddpm"]

SMALLEST_VARIANCE = 1e-20  # diffusers' lower bound


def ddpm(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' DDPMScheduler; a last step from timestep 0 adds no noise.

    Raises InputError (number of steps) and ModelError (an option that is not implemented).
    """
    require_option(config, "thresholding", False)
    require_option(config, "variance_type", None, "fixed_small", "fixed_small_log", "fixed_large")
    timesteps = inference_timesteps(config, num_inference_steps, "leading").round()
    alphas = alphas_cumprod(config, zero_terminal_snr=config.rescale_betas_zero_snr)
    visited = timesteps.astype(int).tolist()
    updates = []
    for t, t_prev in zip(visited, [*visited[1:], None], strict=True):
        require_signal(alphas, t, config)
        alpha_prev = 1.0 if t_prev is None else float(alphas[t_prev])
        updates.append(_update(float(alphas[t]), alpha_prev, config, adds_noise=t > 0))
    return Schedule(
        init_noise_sigma=1.0,
        timesteps=tuple(timesteps.tolist()),
        input_scales=(1.0,) * len(updates),
        updates=tuple(updates),
        alphas=tuple(float(alphas[t]) for t in visited),
    )


def _update(alpha_t: float, alpha_prev: float, config: SchedulerConfig, *, adds_noise: bool) -> Update:
    p = prediction(alpha_t, config.prediction_type)
    beta = 1 - alpha_t / alpha_prev
    c_x0 = alpha_prev**0.5 * beta / (1 - alpha_t)
    c_x = (alpha_t / alpha_prev) ** 0.5 * (1 - alpha_prev) / (1 - alpha_t)
    variance = max(beta * (1 - alpha_prev) / (1 - alpha_t), SMALLEST_VARIANCE)
    if config.variance_type == "fixed_large":
        variance = beta
    c_noise = variance**0.5 if adds_noise else 0.0
    if config.clip_sample is not False:
        return Update(c_x=c_x, c_x0=c_x0, p_x=p.x0_x, p_m=p.x0_m, clip_range=config.clip_sample_range, c_noise=c_noise)
    return Update(c_x=c_x + c_x0 * p.x0_x, c_m=c_x0 * p.x0_m, c_noise=c_noise)
