"""DDIM: Song, Meng and Ermon 2020, "Denoising Diffusion Implicit Models", equations 12 and 16.

sigma  = eta sqrt((1 - alpha_prev) / (1 - alpha)) sqrt(1 - alpha / alpha_prev)
x_prev = sqrt(alpha_prev) x_0 + sqrt(1 - alpha_prev - sigma^2) eps + sigma noise
"""

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.noise import alphas_cumprod, inference_timesteps, prediction, require_signal
from shaderfusion.schedulers.schedule import Schedule, Update, require_option

__all__ = ["ddim"]


def ddim(config: SchedulerConfig, num_inference_steps: int, eta: float = 0.0) -> Schedule:
    """The updates of diffusers' DDIMScheduler with that eta: 0 adds no noise, 1 as much as DDPM.

    Raises InputError (number of steps) and ModelError (an option that is not implemented).
    """
    require_option(config, "thresholding", False)
    require_option(config, "timestep_spacing", None, "leading", "linspace", "trailing")  # of one stride
    timesteps = inference_timesteps(config, num_inference_steps, "leading").round()
    alphas = alphas_cumprod(config, zero_terminal_snr=config.rescale_betas_zero_snr)
    final_alpha = alphas[0] if config.set_alpha_to_one is False else 1.0
    stride = config.num_train_timesteps // num_inference_steps

    updates = []
    for t in timesteps.astype(int):
        require_signal(alphas, t, config)
        alpha_prev = float(alphas[t - stride] if t >= stride else final_alpha)
        updates.append(_update(float(alphas[t]), alpha_prev, eta, config))

    return Schedule(
        init_noise_sigma=1.0,
        timesteps=tuple(timesteps.tolist()),
        input_scales=(1.0,) * len(updates),
        updates=tuple(updates),
        alphas=tuple(alphas[timesteps.astype(int)].tolist()),
    )


def _update(alpha_t: float, alpha_prev: float, eta: float, config: SchedulerConfig) -> Update:
    p = prediction(alpha_t, config.prediction_type)
    c_noise = eta * ((1 - alpha_prev) / (1 - alpha_t) * (1 - alpha_t / alpha_prev)) ** 0.5
    signal, noise = alpha_prev**0.5, max(0.0, 1 - alpha_prev - c_noise**2) ** 0.5
    if config.clip_sample is not False:
        return Update(
            c_x=noise * p.eps_x,
            c_m=noise * p.eps_m,
            c_x0=signal,
            p_x=p.x0_x,
            p_m=p.x0_m,
            clip_range=config.clip_sample_range,
            c_noise=c_noise,
        )
    return Update(c_x=signal * p.x0_x + noise * p.eps_x, c_m=signal * p.x0_m + noise * p.eps_m, c_noise=c_noise)
