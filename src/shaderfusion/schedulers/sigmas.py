"""Noise levels of rules in units where x = x_0 + sigma eps, with sigma = sqrt((1 - alpha) / alpha).

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models".
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from shaderfusion.errors import InputError, ModelError
from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.noise import alphas_cumprod, inference_timesteps, prediction
from shaderfusion.schedulers.schedule import Schedule, Update, require_option

__all__ = [
    "beta_sigmas",
    "exponential_sigmas",
    "from_solver",
    "inference_sigmas",
    "karras_sigmas",
    "sigmas_at",
    "slope",
    "solver_sigmas",
    "spacing_of_sigmas",
    "timesteps_at",
    "trained_sigmas",
    "with_sigmas",
    "x0_of",
]

# diffusers' stand-in for alpha = 0, so that sigma stays finite (4096).
SMALLEST_ALPHA = 2.0**-24


def trained_sigmas(config: SchedulerConfig, *, zero_terminal_snr: bool) -> np.ndarray:
    """sigma of each training timestep: (num_train_timesteps,), rising.

    From alpha in float32, as in diffusers: the difference, which 1 - alpha makes large at the first timesteps, decides
    how some timesteps of `karras_sigmas` are rounded.
    """
    alphas = alphas_cumprod(config, zero_terminal_snr=zero_terminal_snr).astype(np.float32)
    if zero_terminal_snr:
        alphas[-1] = SMALLEST_ALPHA
    return np.sqrt((1 - alphas) / alphas).astype(np.float64)


def sigmas_at(timesteps: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """sigma at timesteps that may be fractions, by linear interpolation."""
    return np.interp(timesteps, np.arange(len(trained)), trained)


def timesteps_at(sigmas: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """The timesteps, as fractions, whose sigma it is, by linear interpolation of log sigma.

    As in diffusers, logarithms of the trained ones are float32, which makes some timesteps just less than whole.
    """
    return np.interp(np.log(sigmas), np.log(trained).astype(np.float32), np.arange(len(trained)))


def karras_sigmas(largest: float, smallest: float, num_inference_steps: int) -> np.ndarray:
    """From the largest to the smallest, evenly spaced in sigma^(1/7): equation 5 there."""
    rho = 7
    return np.linspace(largest ** (1 / rho), smallest ** (1 / rho), num_inference_steps) ** rho


def exponential_sigmas(largest: float, smallest: float, num_inference_steps: int) -> np.ndarray:
    """From the largest to the smallest, evenly spaced in log sigma."""
    return np.exp(np.linspace(math.log(largest), math.log(smallest), num_inference_steps))


def beta_sigmas(largest: float, smallest: float, num_inference_steps: int) -> np.ndarray:
    """From the largest to the smallest, spaced as quantiles of the beta distribution of 0.6 and 0.6, which are dense
    at both ends: Lee et al. 2024, "Beta Sampling is All You Need", arXiv 2407.12173.
    """
    return smallest + (largest - smallest) * _beta_quantiles(1 - np.linspace(0, 1, num_inference_steps), 0.6)


def _beta_quantiles(p: np.ndarray, a: float) -> np.ndarray:
    """Quantiles of the symmetric beta distribution of a and a, by bisection of its distribution function.

    Up to x = 1/2 the function is x^a / B(a, a) times the sum over k of (1 - a)_k x^k / (k! (a + k)), whose terms fall
    by more than half each.
    """
    k = np.arange(1, 60)
    series = np.concatenate([[1.0], np.cumprod((k - a) / k)]) / (a + np.arange(60))
    scale = math.gamma(2 * a) / math.gamma(a) ** 2
    tail = np.minimum(p, 1 - p)  # the rest by symmetry
    low, high = np.zeros_like(tail), np.full_like(tail, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        is_below = scale * middle**a * np.polynomial.polynomial.polyval(middle, series) < tail
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    return np.where(p > 0.5, 1 - low, low)


SPACINGS = {
    "use_karras_sigmas": karras_sigmas,
    "use_exponential_sigmas": exponential_sigmas,
    "use_beta_sigmas": beta_sigmas,
}


def spacing_of_sigmas(config: SchedulerConfig) -> str | None:
    """The key of SPACINGS that the model's file has on, if any; ModelError where it is more than one."""
    chosen = [key for key in SPACINGS if getattr(config, key)]
    if len(chosen) > 1:
        raise ModelError(f"{' and '.join(chosen)} must not both be true; set one of them in scheduler_config.json")
    return chosen[0] if chosen else None


def inference_sigmas(
    config: SchedulerConfig, num_inference_steps: int, trained: np.ndarray, *, reads_spacing: bool = True
) -> tuple[np.ndarray, list[float]]:
    """The timesteps, as fractions, and the sigmas that a run visits, which options space between their ends."""
    timesteps = inference_timesteps(config, num_inference_steps, "linspace")
    sigmas = sigmas_at(timesteps, trained)
    spacing = spacing_of_sigmas(config) if reads_spacing else None
    if spacing:
        sigmas = SPACINGS[spacing](sigmas[0], sigmas[-1], num_inference_steps)
        timesteps = timesteps_at(sigmas, trained)
    return timesteps, sigmas.tolist()


def solver_sigmas(
    config: SchedulerConfig, num_inference_steps: int, trained: np.ndarray
) -> tuple[np.ndarray, list[float]]:
    """The same for the solvers, with the sigma at which the last step ends: timesteps are whole there, linspace and
    leading leave out the last one, and options space sigmas between the ends of training.
    """
    timesteps = inference_timesteps(config, num_inference_steps, "linspace", leaves_out_last=True).round()
    if len(set(timesteps)) < num_inference_steps:
        raise InputError(
            f"num_inference_steps (={num_inference_steps}) must be less than num_train_timesteps "
            f"(={config.num_train_timesteps}) for this scheduler"
        )
    sigmas = sigmas_at(timesteps, trained)
    spacing = spacing_of_sigmas(config)
    if spacing:
        require_option(config, "beta_schedule", None, "linear", "scaled_linear")  # of others diffusers truncates t
        sigmas = SPACINGS[spacing](trained[-1], trained[0], num_inference_steps)
        timesteps = timesteps_at(sigmas, trained)
        timesteps = timesteps.round() if spacing == "use_karras_sigmas" else np.floor(timesteps)  # as diffusers does
    return timesteps, [*sigmas.tolist(), 0.0 if config.final_sigmas_type == "zero" else float(trained[0])]


def slope(sigma: float, prediction_type: Literal["epsilon", "v_prediction"]) -> tuple[float, float]:
    """Coefficients of x and of the model output m in dx / dsigma = eps; the model sees x / sqrt(sigma^2 + 1)."""
    p = prediction(1 / (sigma**2 + 1), prediction_type)
    return p.eps_x / (sigma**2 + 1) ** 0.5, p.eps_m


def x0_of(sigma: float, prediction_type: Literal["epsilon", "v_prediction"]) -> tuple[float, float]:
    """Coefficients of x and of the model output m in x_0 = x - sigma eps."""
    eps_x, eps_m = slope(sigma, prediction_type)
    return 1 - sigma * eps_x, -sigma * eps_m


def with_sigmas(
    config: SchedulerConfig,
    timesteps: np.ndarray,
    sigmas: list[float],
    updates: list[Update],
    *,
    calls_per_step: int = 1,
) -> Schedule:
    """The schedule of calls of the model at these timesteps and sigmas."""
    largest, spacing_is_leading = max(sigmas), config.timestep_spacing == "leading"
    return Schedule(
        init_noise_sigma=(largest**2 + 1) ** 0.5 if spacing_is_leading else largest,
        timesteps=tuple(timesteps.tolist()),
        input_scales=tuple(1 / (sigma**2 + 1) ** 0.5 for sigma in sigmas),
        updates=tuple(updates),
        alphas=tuple(1 / (sigma**2 + 1) for sigma in sigmas),
        calls_per_step=calls_per_step,
    )


def from_solver(
    timesteps: np.ndarray, sigmas: Sequence[float], updates_from: Callable[[int], tuple[Update, ...]]
) -> Schedule:
    """That of `solver_sigmas` and of updates of x = sqrt(alpha) x_0 + sqrt(1 - alpha) eps by what came before them."""
    return Schedule(
        init_noise_sigma=1.0,
        timesteps=tuple(timesteps.tolist()),
        input_scales=(1.0,) * len(timesteps),
        updates=updates_from(0),
        alphas=tuple(1 / (sigma**2 + 1) for sigma in sigmas[:-1]),
        updates_from=updates_from,
    )
