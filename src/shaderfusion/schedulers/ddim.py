"""DDIM without noise: Song, Meng and Ermon 2020, "Denoising Diffusion Implicit Models", equation 12 with sigma = 0.

x_prev = sqrt(alpha_prev) x_0 + sqrt(1 - alpha_prev) eps
"""

from shaderfusion.config import SchedulerConfig
from shaderfusion.schedulers.noise import alphas_cumprod, inference_timesteps, prediction, require_signal
from shaderfusion.schedulers.schedule import Schedule, Update, require_option

__all__ = ["ddim"]


def ddim(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' DDIMScheduler with eta = 0.

    Raises InputError (number of steps) and ModelError (an option that is not implemented).
    """
    require_option(config, "thresholding", False)
    timesteps = inference_timesteps(config, num_inference_steps, "leading").round()
    alphas = alphas_cumprod(config, zero_terminal_snr=config.rescale_betas_zero_snr)
    final_alpha = alphas[0] if config.set_alpha_to_one is False else 1.0
    stride = config.num_train_timesteps // num_inference_steps

    updates = []
    for t in timesteps.astype(int):
        require_signal(alphas, t, config)
        alpha_prev = float(alphas[t - stride] if t >= stride else final_alpha)
        updates.append(_update(float(alphas[t]), alpha_prev, config))

    return Schedule(
        init_noise_sigma=1.0,
        timesteps=tuple(timesteps.tolist()),
        input_scales=(1.0,) * len(updates),
        updates=tuple(updates),
        alphas=tuple(alphas[timesteps.astype(int)].tolist()),
    )


def _update(alpha_t: float, alpha_prev: float, config: SchedulerConfig) -> Update:
    p = prediction(alpha_t, config.prediction_type)
    signal, noise = alpha_prev**0.5, (1 - alpha_prev) ** 0.5
    if config.clip_sample is not False:
        return Update(
            c_x=noise * p.eps_x,
            c_m=noise * p.eps_m,
            c_x0=signal,
            p_x=p.x0_x,
            p_m=p.x0_m,
            clip_range=config.clip_sample_range,
        )
    return Update(c_x=signal * p.x0_x + noise * p.eps_x, c_m=signal * p.x0_m + noise * p.eps_m)
