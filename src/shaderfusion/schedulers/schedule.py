"""What a scheduler makes: a table of linear updates that one GPU kernel applies, one row a call of the UNet."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from shaderfusion.brownian import Times
from shaderfusion.errors import ModelError
from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.noise import PredictionType, prediction

__all__ = ["Schedule", "Update", "require_option"]


@dataclass(frozen=True, kw_only=True)
class Update:
    """Coefficients of one denoising step, from x_t to x_prev (both of any shape):

        m      = eps_uncond + guidance_scale (eps_text - eps_uncond)      model output after guidance
        x0     = p_x x_t + p_m m, clipped to [-clip_range, clip_range]    only where c_x0 != 0
        x_prev = c_x x_t + c_saved x_saved + c_m m + c_h1 h1 + c_h2 h2 + c_h3 h3 + c_x0 x0 + c_noise noise

    noise is new normal noise, which the host makes only for steps with c_noise != 0. h1, h2, h3 are what earlier steps
    pushed to the history, the newest first. Then, with the values from before the update:

        if h_x or h_m:    h3, h2, h1 = h2, h1, h_x x_t + h_m m
        if save_sample:   x_saved = x_t

    What is not yet written (history, x_saved, noise) has coefficient 0.
    """

    c_x: float = 0.0
    c_saved: float = 0.0
    c_m: float = 0.0
    c_h1: float = 0.0
    c_h2: float = 0.0
    c_h3: float = 0.0
    c_x0: float = 0.0
    c_noise: float = 0.0
    p_x: float = 0.0
    p_m: float = 0.0
    clip_range: float = 0.0
    h_x: float = 0.0
    h_m: float = 0.0
    save_sample: bool = False


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A whole denoising run, from x = init_noise_sigma * noise to the latents.

    Call i gives the UNet `input_scales[i] * x` at time `timesteps[i]` (of num_train_timesteps), and `updates[i]`
    turns its output into the next x. PNDM makes one call more than there are steps.
    """

    init_noise_sigma: float
    timesteps: tuple[float, ...]
    input_scales: tuple[float, ...]
    updates: tuple[Update, ...]
    alphas: tuple[float, ...]
    """Before call i, x is (sqrt(alpha_i) x_0 + sqrt(1 - alpha_i) eps) / input_scale_i, with eps normal noise."""
    name: str = ""
    """In SCHEDULERS, once it is known."""
    calls_per_step: int = 1
    """A run may begin at calls that are multiples of it."""
    path_times: Times | None = None
    """Of the Brownian path whose increments are the noise; None where each noise is new."""
    updates_from: Callable[[int], tuple[Update, ...]] | None = field(default=None, repr=False, compare=False)
    """The updates of a run that begins at that call; None where they are the last ones of the whole run."""

    def noised(self, x_0: np.ndarray, noise: np.ndarray, call: int) -> np.ndarray:
        """x before that call, of a picture's latents x_0 and normal noise, of any shape."""
        alpha, input_scale = self.alphas[call], self.input_scales[call]
        x = (alpha**0.5 * x_0 + (1 - alpha) ** 0.5 * noise) / input_scale
        return x.astype(np.float32)

    def predicted(self, x: np.ndarray, m: np.ndarray, call: int, prediction_type: PredictionType) -> np.ndarray:
        """x_0 as that call has it, of x before it and the model output m after guidance, of any shape."""
        p, update = prediction(self.alphas[call], prediction_type), self.updates[call]
        x_0 = np.float32(p.x0_x * self.input_scales[call]) * x + np.float32(p.x0_m) * m
        return np.clip(x_0, -update.clip_range, update.clip_range) if update.c_x0 else x_0

    def tail(self, first_call: int) -> "Schedule":
        """That of a run which begins at a call after the first, from `noised` latents."""
        updates = self.updates[first_call:] if self.updates_from is None else self.updates_from(first_call)
        return replace(
            self,
            timesteps=self.timesteps[first_call:],
            input_scales=self.input_scales[first_call:],
            updates=updates,
            alphas=self.alphas[first_call:],
            path_times=self.path_times and self.path_times._replace(spans=self.path_times.spans[first_call:]),
            updates_from=None,
        )


def require_option(config: SchedulerConfig, key: str, *supported: object, remedy: str = "") -> None:
    """Raise ModelError unless field `key` has one of the values that the scheduler implements."""
    value = getattr(config, key)
    if value not in supported:
        choices = " or ".join(map(repr, supported))
        raise ModelError(f"{key} (={value!r}) must be {choices}, nothing else is implemented{remedy}")
