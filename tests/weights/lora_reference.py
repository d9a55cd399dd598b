"""What adapters' changes add to a weight, in float64, by their definitions."""

from collections.abc import Sequence

import numpy as np

from shaderfusion.weights.lora.kinds import Change, Matrix, Product, Whole

__all__ = ["difference", "merged"]


def merged(array: np.ndarray, changes: Sequence[tuple[Change, float]]) -> np.ndarray:
    """A tensor with all of these, each at its strength."""
    weight = array.astype(np.float64).reshape(len(array), -1)
    return (weight + sum(strength * difference(change, weight) for change, strength in changes)).reshape(array.shape)


def difference(change: Change, weight: np.ndarray) -> np.ndarray:
    """Between the weight (M, N) with a change of strength 1 and without it."""
    if isinstance(change, Product):
        values = _values(change.matrix)
        if change.left:
            left = _values(change.left)
            values = np.kron(left, values) if change.is_kronecker else left * values
        return change.scale * values
    M, N = change.size
    m = change.magnitude.values().reshape(-1).astype(np.float64)
    changed = (weight + difference(change.product, weight)).reshape((M, m.size, -1) if change.by_input else (M, 1, N))
    axes = (0, 2) if change.by_input else (1, 2)
    norm = np.sqrt(np.square(changed).sum(axes, keepdims=True))
    return (m.reshape(norm.shape) * changed / norm).reshape(M, N) - weight


def _values(matrix: Matrix) -> np.ndarray:
    if isinstance(matrix, Whole):
        return matrix.tensor.matrix().astype(np.float64)
    up, core, down = matrix.factors()
    core = np.eye(len(down))[..., None] if core is None else core.astype(np.float64)
    return np.einsum("mr,rst,sc->mct", up, core, down, optimize=True).reshape(len(up), -1)
