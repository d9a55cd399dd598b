"""What an adapter changes in one tensor of the model, seen as a matrix (M, N): M output channels, N values of each.

LoRA (Hu et al. 2021, arXiv 2106.09685), LoHa (Hyeon-Woo et al. 2021, 2108.06098) and LoKr (Yeh et al. 2023,
2309.14859), the latter two with Tucker's decomposition of 3x3 filters too, and DoRA (Liu et al. 2024, 2402.09353). A
change is made from tensors as they are stored, by their shapes: values are read when they are asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shaderfusion.weights.checkpoint import StoredTensor

__all__ = ["AdapterTensor", "Change", "Decomposed", "Factors", "LowRank", "Matrix", "Product", "Whole"]

_LARGEST_RANK = 4096


@dataclass(eq=False)
class AdapterTensor:
    """One tensor of an adapter's file."""

    shape: tuple[int, ...]
    stored: StoredTensor

    def values(self) -> np.ndarray:
        """In f32, in its shape."""
        return self.stored.to_f32().reshape(self.shape)

    def matrix(self, rows: range | None = None) -> np.ndarray:
        """In f32: (shape[0], all else), or some of its rows."""
        data = self.stored.data.reshape(self.shape[0], -1)
        data = data if rows is None else data[rows.start : rows.stop]
        return StoredTensor(self.stored.dtype, data.reshape(-1)).to_f32().reshape(len(data), -1)


@dataclass(frozen=True, eq=False)
class Whole:
    """One tensor, whose dimensions after the first are columns."""

    tensor: AdapterTensor

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns)"""
        return self.tensor.shape[0], math.prod(self.tensor.shape[1:])


class Factors(NamedTuple):
    """W_mckl = sum_rs up_mr core_rskl down_sc, or without a core the product up down; in f32."""

    up: np.ndarray
    """(M, R)"""
    core: np.ndarray | None
    """(R, S, T) of T = k l taps."""
    down: np.ndarray
    """(S, C)"""


class LowRank:
    """up (M, R, ...) times down (R, ...), or with Tucker's core mid (R, S, k, k) and down (S, C) what `Factors` says.
    `transposed`: up is stored (R, M)."""

    def __init__(
        self, up: AdapterTensor, down: AdapterTensor, mid: AdapterTensor | None = None, *, transposed: bool = False
    ) -> None:
        """ValueError where the shapes do not fit each other, or a rank is too large."""
        self._up, self._down, self._mid, self._transposed = up, down, mid, transposed
        if min(len(tensor.shape) for tensor in (up, down, mid or down)) < 2:
            raise ValueError("a factor has one dimension only")
        M, R = up.shape[:2][::-1] if transposed else up.shape[:2]
        if math.prod(up.shape[2:]) != 1 or (mid.shape[:2] if mid else (R, R)) != (R, down.shape[0]):
            shapes = ", ".join(str(tensor.shape) for tensor in (up, mid, down) if tensor)
            raise ValueError(f"factors of shapes {shapes} have no product")
        if max(R, down.shape[0]) > _LARGEST_RANK:
            raise ValueError(f"rank (={max(R, down.shape[0])}) must be from 1 to {_LARGEST_RANK}")
        self._size = (M, math.prod(down.shape[1:]) * (math.prod(mid.shape[2:]) if mid else 1))
        self.rank = R

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns)"""
        return self._size

    def factors(self, rows: range | None = None) -> Factors:
        """Of the matrix, or of some of its rows."""
        if self._transposed:
            up = self._up.values().reshape(self._up.shape[:2]).T
            up = up if rows is None else up[rows.start : rows.stop]
        else:
            up = self._up.matrix(rows)
        core = self._mid and self._mid.values().reshape(*self._mid.shape[:2], -1)
        return Factors(up, core, self._down.matrix())


Matrix = Whole | LowRank
"""As an adapter stores it."""


@dataclass(frozen=True, eq=False)
class Product:
    """scale times a matrix: LoRA, and a whole difference; or times the product of two: LoHa's element by element, or
    LoKr's, which is Kronecker's."""

    matrix: Matrix
    scale: float = 1.0
    left: Matrix | None = None
    is_kronecker: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(M, N) of the tensor that it is for."""
        (m, n), (p, q) = self.matrix.size, self.left.size if self.left and self.is_kronecker else (1, 1)
        return m * p, n * q


@dataclass(frozen=True, eq=False)
class Decomposed:
    """DoRA: the weight with a product d added is brought to a magnitude m, channel by channel: m (W + d) / |W + d|.

    Channels are output channels, or, as older files of LyCORIS have it, input channels.
    """

    product: Product
    magnitude: AdapterTensor
    by_input: bool

    @property
    def size(self) -> tuple[int, int]:
        """Of the product."""
        return self.product.size


Change = Product | Decomposed
"""What an adapter of strength 1 makes of a tensor of the model: a product is added, `Decomposed` takes its place."""
