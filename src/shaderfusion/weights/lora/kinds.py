"""What an adapter changes in one tensor of the model, seen as a matrix (M, N): M output channels, N values of each.

LoRA (Hu et al. 2021, arXiv 2106.09685), LoHa (Hyeon-Woo et al. 2021, 2108.06098) and LoKr (Yeh et al. 2023,
2309.14859), the latter two with Tucker's decomposition of 3x3 filters too, and DoRA (Liu et al. 2024, 2402.09353). A
change is made from tensors as they are stored, by their shapes: values are read when they are asked for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shaderfusion.weights.checkpoint import StoredTensor

__all__ = [
    "AdapterTensor",
    "Change",
    "Decomposed",
    "Factors",
    "Hadamard",
    "Kronecker",
    "LowRank",
    "Matrix",
    "Scaled",
    "Whole",
]

_LARGEST_RANK = 4096


@dataclass(eq=False)
class AdapterTensor:
    """One tensor of an adapter's file."""

    shape: tuple[int, ...]
    stored: StoredTensor

    def values(self) -> np.ndarray:
        """In f32, in its shape."""
        return self.stored.to_f32().reshape(self.shape)

    def rows(self) -> np.ndarray:
        """In f32: (shape[0], all else)."""
        return self.values().reshape(self.shape[0], -1)


class Factors(NamedTuple):
    """The product up down, (M, R) times (R, N), in f32."""

    up: np.ndarray
    down: np.ndarray


class Matrix(ABC):
    """A matrix as an adapter stores it: whole, or as a product."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(rows, columns)"""

    @abstractmethod
    def values(self) -> np.ndarray:
        """In f32."""


class Whole(Matrix):
    """One tensor, whose dimensions after the first are columns."""

    def __init__(self, tensor: AdapterTensor) -> None:
        self._tensor = tensor

    @property
    def size(self) -> tuple[int, int]:
        """Of the tensor."""
        return self._tensor.shape[0], math.prod(self._tensor.shape[1:])

    def values(self) -> np.ndarray:
        """In f32."""
        return self._tensor.rows()


class LowRank(Matrix):
    """up (M, R, ...) times down (R, ...); with Tucker's core mid (R, S, k, k), and down (S, C), the filters
    W_mckl = sum_rs up_mr mid_rskl down_sc. `transposed`: up is stored (R, M)."""

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
        """(M, N)"""
        return self._size

    def factors(self) -> Factors:
        """The product's, the core multiplied into down."""
        up, down = self._up.rows().reshape(self._up.shape[:2]), self._down.rows()
        if self._mid:
            core = self._mid.values().reshape(*self._mid.shape[:2], -1)
            down = np.tensordot(core, down, (1, 0)).transpose(0, 2, 1).reshape(len(core), -1)
        return Factors(up.T if self._transposed else up, down)

    def values(self) -> np.ndarray:
        """In f32."""
        up, down = self.factors()
        return up @ down


class Change(ABC):
    """What an adapter of strength 1 adds to a tensor of the model."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(M, N) of the tensor that it is for."""

    def factors(self) -> Factors | None:
        """Their product is the difference; None where that has no short form."""
        return None

    @abstractmethod
    def difference(self, weight: np.ndarray) -> np.ndarray:
        """What is added to that weight (M, N), in f32."""


@dataclass(frozen=True, eq=False)
class Scaled(Change):
    """scale times a matrix: LoRA, and a whole difference."""

    matrix: Matrix
    scale: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        """Of the matrix."""
        return self.matrix.size

    def factors(self) -> Factors | None:
        """Of LoRA."""
        if not isinstance(self.matrix, LowRank):
            return None
        up, down = self.matrix.factors()
        return Factors(np.float32(self.scale) * up, down)

    def difference(self, weight: np.ndarray) -> np.ndarray:
        """Whatever the weight."""
        return np.float32(self.scale) * self.matrix.values()


@dataclass(frozen=True, eq=False)
class Hadamard(Change):
    """scale times the elementwise product of two products: LoHa."""

    first: LowRank
    second: LowRank
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        """Of either."""
        return self.first.size

    def factors(self) -> Factors | None:
        """A product of rank R1 R2, with each row of up and column of down an outer product; None where these hold more
        values than the difference."""
        M, N = self.size
        rank = self.first.rank * self.second.rank
        if rank * (M + N) > M * N:
            return None
        (a, b), (c, d) = self.first.factors(), self.second.factors()
        up = (a[:, :, None] * c[:, None, :]).reshape(M, rank)
        down = (b[:, None, :] * d[None, :, :]).reshape(rank, N)
        return Factors(np.float32(self.scale) * up, down)

    def difference(self, weight: np.ndarray) -> np.ndarray:
        """Whatever the weight."""
        return np.float32(self.scale) * self.first.values() * self.second.values()


@dataclass(frozen=True, eq=False)
class Kronecker(Change):
    """scale times the Kronecker product of two matrices: LoKr."""

    first: Matrix
    second: Matrix
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        """The products of both sizes."""
        (a, b), (c, d) = self.first.size, self.second.size
        return a * c, b * d

    def difference(self, weight: np.ndarray) -> np.ndarray:
        """Whatever the weight."""
        return np.kron(np.float32(self.scale) * self.first.values(), self.second.values())


@dataclass(frozen=True, eq=False)
class Decomposed(Change):
    """DoRA: the weight with another change is brought to a magnitude m, channel by channel: m (W + d) / |W + d|.

    Channels are output channels, or, as older files of LyCORIS have it, input channels.
    """

    change: Change
    magnitude: AdapterTensor
    by_input: bool

    @property
    def size(self) -> tuple[int, int]:
        """Of the other change."""
        return self.change.size

    def difference(self, weight: np.ndarray) -> np.ndarray:
        """From that weight."""
        M, N = self.size
        m = self.magnitude.values().reshape(-1)
        changed = (weight + self.change.difference(weight)).reshape((M, m.size, -1) if self.by_input else (M, 1, N))
        axes = (0, 2) if self.by_input else (1, 2)
        norm = np.sqrt(np.square(changed).sum(axes, keepdims=True))
        changed *= m.reshape(norm.shape) / np.maximum(norm, np.finfo(np.float32).tiny)
        return changed.reshape(M, N) - weight
