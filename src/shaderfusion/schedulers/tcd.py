"""Sampling of trajectory consistency models: Zheng et al. 2024, arXiv 2402.19159, algorithm 4.

The model goes from x_t to timestep s = (1 - eta) t_prev, and new noise takes the image back to t_prev:

    x_s    = sqrt(alpha_s) x_0 + sqrt(1 - alpha_s) eps
    x_prev = sqrt(alpha_prev / alpha_s) x_s + sqrt(1 - alpha_prev / alpha_s) noise,    at last, for t_prev = 0, x_s

eta is the paper's gamma: 0 adds no noise, 1 goes by way of x_0 as LCM does.
"""

import numpy as np

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.noise import alphas_cumprod, distillation_timesteps, prediction, require_signal
from shaderfusion.schedulers.schedule import Schedule, Update

__all__ = ["tcd"]


def tcd(config: SchedulerConfig, num_inference_steps: int, eta: float = 0.0) -> Schedule:
    """The updates of diffusers' TCDScheduler, with its defaults, which differ from others'.

    Raises InputError (number of steps) and ModelError (an option that is not implemented).
    """
    config = config.with_defaults(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    timesteps = distillation_timesteps(config, num_inference_steps)
    alphas = alphas_cumprod(config, zero_terminal_snr=config.rescale_betas_zero_snr)
    updates = []
    for t, t_prev in zip(timesteps, [*timesteps[1:], 0], strict=True):
        require_signal(alphas, t, config)
        s = int(np.float32(1 - eta) * np.float32(t_prev))  # in float32, as torch rounds it
        updates.append(_update(float(alphas[t]), float(alphas[s]), float(alphas[t_prev]), config))
    return Schedule(
        init_noise_sigma=1.0,
        timesteps=tuple(map(float, timesteps)),
        input_scales=(1.0,) * len(updates),
        updates=tuple(updates),
        alphas=tuple(float(alphas[t]) for t in timesteps),
    )


def _update(alpha_t: float, alpha_s: float, alpha_prev: float, config: SchedulerConfig) -> Update:
    p = prediction(alpha_t, config.prediction_type)
    ratio = alpha_prev / alpha_s
    signal, noise = (ratio * alpha_s) ** 0.5, (ratio * (1 - alpha_s)) ** 0.5
    return Update(
        c_x=signal * p.x0_x + noise * p.eps_x,
        c_m=signal * p.x0_m + noise * p.eps_m,
        c_noise=(1 - ratio) ** 0.5,
    )
