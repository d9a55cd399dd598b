"""Tensors without memory: a name, a shape, a dtype and a role.

Symbols used in every shape, outermost first, channels last:

    B  batch                  N  query tokens (rows)       G  groups of channels
    H  height, W width        M  key tokens                D  channels of one attention head
    C  channels               L  tokens of a prompt        K  summed dimension of a product
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from shaderfusion.errors import ShapeError

__all__ = ["DType", "Role", "TensorSpec", "dtype_size_bytes"]

DType = Literal["f16", "f32"]
Role = Literal["intermediate", "weight", "input", "output"]

_SIZE_BYTES: dict[str, int] = {"f16": 2, "f32": 4}


def dtype_size_bytes(dtype: DType) -> int:
    """Bytes of one element."""
    return _SIZE_BYTES[dtype]


@dataclass(frozen=True, eq=False)
class TensorSpec:
    """A handle: two specs are the same tensor only if they are the same object, or views of one `storage`.

    Roles: an `intermediate` lives inside one graph and shares memory with others; `weight`, `input` and
    `output` have memory of their own that outlives a run.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    role: Role = "intermediate"
    base: "TensorSpec | None" = None

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ShapeError(f"{self.name}: shape {self.shape} must have at least one dimension, each at least 1")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of memory, rounded up to the 16 that the widest load of a shader touches."""
        return -(-self.size * dtype_size_bytes(self.dtype) // 16) * 16

    @property
    def storage(self) -> "TensorSpec":
        """The spec whose memory this one reads or writes: itself, unless it is a view."""
        return self.base or self

    def reshape(self, *shape: int) -> "TensorSpec":
        """The same memory under another shape of the same size."""
        if math.prod(shape) != self.size:
            raise ShapeError(f"{self.name}: cannot view shape {self.shape} as {shape}: the sizes differ")
        return replace(self, shape=shape, base=self.storage)

    def __repr__(self) -> str:
        return f"{self.name}{list(self.shape)}:{self.dtype}"
