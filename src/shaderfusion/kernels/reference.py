"""The specification: each kernel as a float64 NumPy function of the same name."""

import math

import numpy as np

__all__ = [
    "activate",
    "add",
    "concat_channels",
    "denoise_step",
    "embedding",
    "geglu_unfused",
    "group_norm_unfused",
    "layer_norm",
    "multiply",
    "softmax_unfused",
    "timestep_embedding",
    "upsample_nearest",
]

Array = np.ndarray

_erf = np.vectorize(math.erf, otypes=[np.float64])


def activate(x: Array, *, activation: str | None) -> Array:
    """SiLU x sigmoid(x); GELU x/2 (1 + erf(x/sqrt 2)); quick GELU x sigmoid(1.702 x); None is the identity."""
    match activation:
        case None:
            return x
        case "silu":
            return x / (1 + np.exp(-x))
        case "quick_gelu":
            return x / (1 + np.exp(-1.702 * x))
        case "gelu":
            return x / 2 * (1 + _erf(x / math.sqrt(2)))
    raise ValueError(f"activation (={activation!r}) must be silu, gelu, quick_gelu or None")


def add(a: Array, b: Array) -> Array:
    """a + b."""
    return a + b


def layer_norm(x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
    """(x - mean) / sqrt(var + eps) * weight + bias, over the last dimension."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def softmax_unfused(x: Array, *, num_columns: int, causal: bool = False) -> Array:
    """exp(x_ij - max_j x_ij) / sum_j exp(x_ij - max_j x_ij) over j < num_columns (and j <= i if causal), else 0."""
    i, j = np.indices(x.shape[-2:])
    seen = (j < num_columns) & ((j <= i) | (not causal))
    logits = np.where(seen, x, -np.inf)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def group_norm_unfused(
    x: Array, weight: Array, bias: Array, *, num_groups: int, eps: float, activation: str | None = None
) -> Array:
    """activation((x - mean_g) / sqrt(var_g + eps) * weight + bias); a group g is C/G channels at every pixel."""
    groups = x.reshape(x.shape[0], -1, num_groups, x.shape[-1] // num_groups)  # (B, P, G, C/G)
    mean = groups.mean(axis=(1, 3), keepdims=True)
    variance = groups.var(axis=(1, 3), keepdims=True)
    normalized = ((groups - mean) / np.sqrt(variance + eps)).reshape(x.shape)
    return activate(normalized * weight + bias, activation=activation)


def embedding(token_ids: Array, token_table: Array, position_table: Array) -> Array:
    """token_table[token_ids[b, l]] + position_table[l]."""
    return token_table[token_ids] + position_table[: token_ids.shape[1]]


def timestep_embedding(
    timestep: Array, channels: int, *, flip_sin_to_cos: bool, freq_shift: float, max_period: float = 10000.0
) -> Array:
    """[sin(t f_i), cos(t f_i), 0 if C is odd], f_i = max_period^(-i / (C//2 - freq_shift)); or the cosines first."""
    frequencies = max_period ** (-np.arange(channels // 2) / (channels // 2 - freq_shift))
    angles = timestep[:, None] * frequencies
    halves = [np.cos(angles), np.sin(angles)] if flip_sin_to_cos else [np.sin(angles), np.cos(angles)]
    return np.concatenate([*halves, np.zeros((len(timestep), channels % 2))], axis=1)


def upsample_nearest(x: Array, *, scale: int) -> Array:
    """x[b, y // scale, x // scale]."""
    return x.repeat(scale, axis=1).repeat(scale, axis=2)


def concat_channels(a: Array, b: Array) -> Array:
    """[a, b] along the last dimension."""
    return np.concatenate([a, b], axis=-1)


def multiply(a: Array, b: Array) -> Array:
    """a b, element by element."""
    return a * b


def geglu_unfused(x: Array) -> Array:
    """a GELU(b), with a and b the halves of x along the last dimension."""
    a, b = np.split(x, 2, axis=-1)
    return a * activate(b, activation="gelu")


def denoise_step(
    model_output: Array, coefficients: Array, x_t: Array, x_saved: Array, history: Array, *, guidance: bool
) -> tuple[Array, Array, Array, Array]:
    """Guidance and a scheduler's update (equations: schedulers.schedule.Update): the new x_t, x_saved, history, input.

    A term with coefficient 0 is left out, not multiplied: x_saved and the history may be NaN before their first use.
    """
    guidance_scale, p_x, p_m, c_x, c_saved, c_m, c_h1, c_h2, c_h3, c_x0 = coefficients[:10]
    clip_range, next_input_scale, push_history, save_sample = coefficients[10:14]

    def combine(*terms: tuple[float, Array]) -> Array:
        return sum((c * value for c, value in terms if c != 0), start=np.zeros_like(x_t))

    uncond, text = np.split(model_output, 2) if guidance else (model_output, model_output)
    m = uncond + guidance_scale * (text - uncond)
    h1, h2, h3 = history
    x0 = np.clip(combine((p_x, x_t), (p_m, m)), -clip_range, clip_range)
    x_prev = combine((c_x, x_t), (c_saved, x_saved), (c_m, m), (c_h1, h1), (c_h2, h2), (c_h3, h3), (c_x0, x0))
    model_input = next_input_scale * np.concatenate([x_prev] * (2 if guidance else 1))
    return x_prev, x_t if save_sample else x_saved, np.stack([m, h1, h2]) if push_history else history, model_input
