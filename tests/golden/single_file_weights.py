"""What little golden files in the original layout hold: made from the tensors' names, so that no file is stored."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

__all__ = ["stored_bytes", "weight"]


def stored_bytes(name: str, size_bytes: int) -> bytes:
    """Any bits at all, to be moved and not to be computed with."""
    return hashlib.shake_256(name.encode()).digest(size_bytes)


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """Values in f16 that a network can have: norms near 1, and products that keep the variance."""
    uniform = np.frombuffer(stored_bytes(name, math.prod(shape)), np.uint8) / 127.5 - 1
    if len(shape) < 2:
        is_scale = any(part in name for part in ("norm", "ln_", "in_layers.0", "out_layers.0", ".out.0"))
        values = 0.1 * uniform + (is_scale and name.endswith("weight"))
    else:
        gain = 0.3 if ".conv.4." in name else 1.0  # of TAESD's residual blocks, which no norm follows
        values = gain * uniform * math.sqrt(3 / math.prod(shape[1:]))
    return values.astype(np.float16).reshape(shape)
