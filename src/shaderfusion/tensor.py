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

__all__ = ["VIEW_ALIGNMENT_BYTES", "DType", "Role", "TensorSpec", "dtype_size_bytes"]

DType = Literal["f16", "f32", "u32"]
"""f16 or f32, in which a model is computed; u32 are the words of a file's bytes, and flags."""
Role = Literal["intermediate", "weight", "input", "output"]

VIEW_ALIGNMENT_BYTES = 256
"""WebGPU's largest min-storage-buffer-offset-alignment."""

_SIZE_BYTES: dict[str, int] = {"f16": 2, "f32": 4, "u32": 4}


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
    padding: int = 0
    """So many of the last channels hold zeros: they fill a vector of 4 and stand for nothing in the model."""
    offset_bytes: int = 0
    """Of a view: where it begins in the memory of `base`, at a multiple of 256."""

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ShapeError(f"{self.name}: shape {self.shape} must have at least one dimension, each at least 1")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        """The model's channels: the last dimension without its padding."""
        return self.shape[-1] - self.padding

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
        if self.padding and shape[-1] != self.shape[-1]:
            raise ShapeError(f"{self.name}: its {self.padding} padding channels must stay the last of each row")
        return replace(self, shape=shape, base=self.storage)

    def rows(self, first: int, count: int) -> "TensorSpec":
        """`count` of the outermost rows from `first` on: (count, ...), the same memory.

        ShapeError where there are not as many, or where the first does not begin at a multiple of 256 bytes, which is
        all that WebGPU binds.
        """
        row_size_bytes = self.size // self.shape[0] * dtype_size_bytes(self.dtype)
        offset = self.offset_bytes + first * row_size_bytes
        if not 0 <= first < first + count <= self.shape[0]:
            raise ShapeError(f"{self.name}: rows {first} to {first + count} must be some of its {self.shape[0]}")
        if offset % VIEW_ALIGNMENT_BYTES:
            raise ShapeError(f"{self.name}: row {first} begins at byte {offset}, not a multiple of 256")
        return replace(self, shape=(count, *self.shape[1:]), base=self.storage, offset_bytes=offset)

    def __repr__(self) -> str:
        return f"{self.name}{list(self.shape)}:{self.dtype}"
