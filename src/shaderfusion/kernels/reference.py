"""The specification: each kernel as a float64 NumPy function of the same name."""

import math

import numpy as np

__all__ = [
    "activate",
    "add",
    "group_norm_unfused",
    "layer_norm",
    "softmax_unfused",
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
