"""How much noise a training timestep has, and which timesteps a run visits. Everything but beta is float64.

A noised image is x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) eps, where alpha_t is the product of (1 - beta) up to t
(Ho et al. 2020, "Denoising Diffusion Probabilistic Models", equation 4; written with a bar there).

beta and 1 - beta are float32 as in diffusers, whose alphas of Stable Diffusion's schedule are 1e-6 from exact ones:
little, but `lms` with v prediction makes ten times as much of it, and a Brownian path's times tell the last digit.
"""

from typing import Literal, NamedTuple

import numpy as np

from shaderfusion.errors import InputError, ModelError
from shaderfusion.schedulers.config import SchedulerConfig

__all__ = [
    "ALIGN_YOUR_STEPS",
    "Prediction",
    "PredictionType",
    "alphas_cumprod",
    "betas",
    "distillation_timesteps",
    "inference_timesteps",
    "prediction",
    "require_num_steps",
    "require_signal",
]

PredictionType = Literal["epsilon", "v_prediction"]

# Timesteps optimized for a model: Sabour, Fidler and Kreis 2024, "Align Your Steps", arXiv 2404.14507; the numbers are
# those that their project page publishes, as diffusers' AysSchedules has them, of 10 steps for SD 1.5 and for SDXL.
ALIGN_YOUR_STEPS = {
    "ays": (999, 850, 736, 645, 545, 455, 343, 233, 124, 24),
    "ays_xl": (999, 845, 730, 587, 443, 310, 193, 116, 53, 13),
}


def betas(config: SchedulerConfig) -> np.ndarray:
    """The variance added at each training timestep: (num_train_timesteps,) float32, bit for bit diffusers'.

    scaled_linear is latent diffusion's (Rombach et al. 2022); squaredcos_cap_v2 is the cosine schedule of Nichol and
    Dhariwal 2021, equation 17.
    """
    T = config.num_train_timesteps
    start = 0.0001 if config.beta_start is None else config.beta_start
    end = 0.02 if config.beta_end is None else config.beta_end
    if config.trained_betas is not None:
        return np.array(config.trained_betas, dtype=np.float32)
    if config.beta_schedule in ("linear", None):
        return _linspace(start, end, T)
    if config.beta_schedule == "scaled_linear":
        return _linspace(start**0.5, end**0.5, T) ** 2
    alpha_bar = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999).astype(np.float32)


def _linspace(start: float, end: float, num: int) -> np.ndarray:
    """torch.linspace in float32, (num,): the step is rounded, then each value, counted from the end next to it."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(max(1, num - 1)))
    i = np.arange(num)
    return np.where(i < max(1, num // 2), first + step * i, last - step * i[::-1]).astype(np.float32)


def alphas_cumprod(config: SchedulerConfig, *, zero_terminal_snr: bool) -> np.ndarray:
    """alpha_t for each training timestep: (num_train_timesteps,), falling.

    `zero_terminal_snr` shifts and scales sqrt(alpha) so that the last is 0 and the first stays (Lin et al. 2023,
    "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1).
    """
    alphas = np.cumprod(1 - betas(config), dtype=np.float64)
    if zero_terminal_snr:
        root = np.sqrt(alphas)
        alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return alphas


def inference_timesteps(
    config: SchedulerConfig,
    num_inference_steps: int,
    default_spacing: Literal["leading", "linspace"],
    *,
    leaves_out_last: bool = False,
) -> np.ndarray:
    """The timesteps a run visits: (num_inference_steps,), falling (Lin et al. 2023, table 2). linspace is not rounded.

    With `leaves_out_last`, leading and linspace are spaced for one step more, whose timestep, near 0, is not visited.
    trailing is cut to num_inference_steps, where rounding makes diffusers append timestep -1 (61 steps of 1000, say).
    ays and ays_xl are ALIGN_YOUR_STEPS.

    Raises InputError if there are not as many distinct timesteps in the model's training.
    """
    T, n = config.num_train_timesteps, num_inference_steps
    require_num_steps(n, T, "num_train_timesteps")
    spacing = default_spacing if config.timestep_spacing is None else config.timestep_spacing
    if spacing in ALIGN_YOUR_STEPS:
        return _align_your_steps(spacing, n, T)
    num_spaced = n + 1 if leaves_out_last else n
    if spacing == "linspace":
        return np.linspace(0, T - 1, num_spaced)[::-1][:n]
    if spacing == "trailing":
        return np.round(np.arange(T, 0, -T / n)[:n]) - 1
    timesteps = np.arange(num_spaced)[::-1][:n] * float(T // num_spaced) + config.steps_offset
    if timesteps[0] > T - 1:
        raise InputError(
            f"num_inference_steps (={n}) with the model's steps_offset (={config.steps_offset}) starts at timestep "
            f"{timesteps[0]:.0f}, after the last one trained, {T - 1}; ask for fewer steps"
        )
    return timesteps


def _align_your_steps(name: str, num_inference_steps: int, num_train_timesteps: int) -> np.ndarray:
    timesteps = np.array(ALIGN_YOUR_STEPS[name], dtype=np.float64)
    if num_inference_steps != len(timesteps):
        raise InputError(
            f"num_inference_steps (={num_inference_steps}) must be {len(timesteps)} with the timesteps {name}, which "
            "are published for no other number"
        )
    if num_train_timesteps <= timesteps[0]:
        raise ModelError(
            f"num_train_timesteps (={num_train_timesteps}) must be more than {timesteps[0]:.0f} with the timesteps "
            f"{name}; choose another spacing"
        )
    return timesteps


def distillation_timesteps(config: SchedulerConfig, num_inference_steps: int) -> list[int]:
    """Some of the original_inference_steps that a consistency model was distilled with (Luo et al. 2023, arXiv
    2310.04378, section 4.3): falling, and about evenly spaced among them, the first of each share.

    Raises InputError for more steps than those, ModelError where there are more of those than training timesteps.
    """
    T, num_original = config.num_train_timesteps, config.original_inference_steps
    if num_original > T:
        raise ModelError(f"original_inference_steps (={num_original}) must be at most num_train_timesteps (={T})")
    require_num_steps(num_inference_steps, num_original, "original_inference_steps")
    original = (np.arange(1, num_original + 1) * (T // num_original) - 1)[::-1]
    chosen = np.floor(np.linspace(0, num_original, num_inference_steps, endpoint=False))
    return original[chosen.astype(int)].tolist()


def require_num_steps(num_inference_steps: int, most: int, name_of_most: str) -> None:
    """InputError unless it is a whole number from 1 to `most`, an option of the model."""
    n = num_inference_steps
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= most:
        raise InputError(f"num_inference_steps (={n!r}) must be a whole number from 1 to {name_of_most} (={most})")


def require_signal(alphas: np.ndarray, t: int, config: SchedulerConfig) -> None:
    """ModelError if x_t has nothing of the image and the model predicts the noise, which then tells nothing."""
    if config.prediction_type == "epsilon" and alphas[t] == 0:
        raise ModelError(
            f"timestep {t} is pure noise (rescale_betas_zero_snr), which prediction_type='epsilon' cannot turn "
            "into an image"
        )


class Prediction(NamedTuple):
    """What a model output m says of x_t, in linear form: x_0 = x0_x x_t + x0_m m and eps = eps_x x_t + eps_m m."""

    x0_x: float
    x0_m: float
    eps_x: float
    eps_m: float


def prediction(alpha_t: float, prediction_type: PredictionType) -> Prediction:
    """Solve x_t = sqrt(alpha) x_0 + sqrt(1 - alpha) eps for x_0 and eps.

    m is eps itself, or v = sqrt(alpha) eps - sqrt(1 - alpha) x_0 (Salimans and Ho 2022, appendix D). alpha_t must be
    above 0 for epsilon.
    """
    signal, noise = float(alpha_t) ** 0.5, (1 - float(alpha_t)) ** 0.5
    if prediction_type == "epsilon":
        return Prediction(x0_x=1 / signal, x0_m=-noise / signal, eps_x=0.0, eps_m=1.0)
    return Prediction(x0_x=signal, x0_m=-noise, eps_x=noise, eps_m=signal)
