"""Multistep sampling of latent consistency models: Luo et al. 2023, arXiv 2310.04378, algorithm 3.

The model goes from any x_t to an image in one step; new noise takes the image back to the next timestep:

    f      = c_skip x_t + c_out x_0,    c_skip = 0.25 / ((10 t)^2 + 0.25),    c_out = 10 t / sqrt((10 t)^2 + 0.25)
    x_prev = sqrt(alpha_prev) f + sqrt(1 - alpha_prev) noise,                 at last f itself

The timesteps are num_inference_steps of the original_inference_steps that the model was distilled with (section 4.3).
"""

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.noise import alphas_cumprod, distillation_timesteps, prediction, require_signal
from shaderfusion.schedulers.schedule import Schedule, Update, require_option

__all__ = ["lcm"]

SIGMA_DATA = 0.5


def lcm(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' LCMScheduler, with its defaults, which differ from others'.

    Raises InputError (number of steps) and ModelError (an option that is not implemented).
    """
    require_option(config, "thresholding", False)
    config = config.with_defaults(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    timesteps = distillation_timesteps(config, num_inference_steps)
    alphas = alphas_cumprod(config, zero_terminal_snr=config.rescale_betas_zero_snr)
    updates = []
    for t, t_prev in zip(timesteps, [*timesteps[1:], None], strict=True):
        require_signal(alphas, t, config)
        alpha_prev = 1.0 if t_prev is None else float(alphas[t_prev])
        updates.append(_update(t, float(alphas[t]), alpha_prev, config))
    return Schedule(
        init_noise_sigma=1.0,
        timesteps=tuple(map(float, timesteps)),
        input_scales=(1.0,) * len(updates),
        updates=tuple(updates),
        alphas=tuple(alphas[timesteps].tolist()),
    )


def _update(t: int, alpha_t: float, alpha_prev: float, config: SchedulerConfig) -> Update:
    """From t to alpha_prev, by the prediction x_0 alone where it is 1."""
    p = prediction(alpha_t, config.prediction_type)
    scaled_t = config.timestep_scaling * t
    c_skip = SIGMA_DATA**2 / (scaled_t**2 + SIGMA_DATA**2)
    c_out = scaled_t / (scaled_t**2 + SIGMA_DATA**2) ** 0.5
    signal, noise = alpha_prev**0.5, (1 - alpha_prev) ** 0.5
    if config.clip_sample:
        return Update(
            c_x=signal * c_skip,
            c_x0=signal * c_out,
            p_x=p.x0_x,
            p_m=p.x0_m,
            clip_range=config.clip_sample_range,
            c_noise=noise,
        )
    return Update(c_x=signal * (c_skip + c_out * p.x0_x), c_m=signal * c_out * p.x0_m, c_noise=noise)
