"""What a scheduler makes: a table of linear updates that one GPU kernel applies, one row a call of the UNet."""

from dataclasses import dataclass

from shaderfusion.config import SchedulerConfig
from shaderfusion.errors import ModelError

__all__ = ["Schedule", "Update", "require_option"]


@dataclass(frozen=True, kw_only=True)
class Update:
    """Coefficients of one denoising step, from x_t to x_prev (both of any shape):

        m      = eps_uncond + guidance_scale (eps_text - eps_uncond)      model output after guidance
        x0     = p_x x_t + p_m m, clipped to [-clip_range, clip_range]    only where c_x0 != 0
        x_prev = c_x x_t + c_saved x_saved + c_m m + c_h1 h1 + c_h2 h2 + c_h3 h3 + c_x0 x0

    h1, h2, h3 are earlier model outputs, the newest first. Then, with the values from before the update:

        if push_history:  h3, h2, h1 = h2, h1, m
        if save_sample:   x_saved = x_t

    What is not yet written (history, x_saved) has coefficient 0.
    """

    c_x: float = 0.0
    c_saved: float = 0.0
    c_m: float = 0.0
    c_h1: float = 0.0
    c_h2: float = 0.0
    c_h3: float = 0.0
    c_x0: float = 0.0
    p_x: float = 0.0
    p_m: float = 0.0
    clip_range: float = 0.0
    push_history: bool = False
    save_sample: bool = False


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A whole denoising run, from x = init_noise_sigma * noise to the latents.

    Call i gives the UNet `input_scales[i] * x` at time `timesteps[i]` (of num_train_timesteps), and `updates[i]`
    turns its output into the next x. PNDM makes one call more than `num_inference_steps`.
    """

    name: str
    num_inference_steps: int
    init_noise_sigma: float
    timesteps: tuple[float, ...]
    input_scales: tuple[float, ...]
    updates: tuple[Update, ...]


def require_option(config: SchedulerConfig, name: str, key: str, *supported: object, remedy: str) -> None:
    """Raise ModelError unless field `key` has one of the values that scheduler `name` implements."""
    value = getattr(config, key)
    if value not in supported:
        choices = " or ".join(map(repr, supported))
        raise ModelError(f"{name}: {key} (={value!r}) must be {choices}, nothing else is implemented; {remedy}")
