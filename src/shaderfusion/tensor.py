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
    first_column: int = 0
    """Of a view of columns: which element of each row of `base` is its first."""
    columns_of: int | None = None
    """Of a view of columns: how many a row of `base` has. A shader is bound the whole rows."""

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
    def row_stride(self) -> int:
        """Elements from a row, of the last dimension, to the next in memory: in a view of columns more than its own."""
        return self.shape[-1] if self.columns_of is None else self.columns_of

    @property
    def size_bytes(self) -> int:
        """Bytes of memory, rounded up to the 16 that the widest load of a shader touches."""
        return -(-self._span * dtype_size_bytes(self.dtype) // 16) * 16

    @property
    def _span(self) -> int:
        """Elements of the rows in memory, those between the columns of a view included."""
        return math.prod(self.shape[:-1]) * self.row_stride

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
        if self.columns_of is not None and shape[-1] != self.shape[-1]:
            raise ShapeError(f"{self.name}: a view of columns must keep the {self.shape[-1]} of each row")
        return replace(self, shape=shape, base=self.storage)

    def rows(self, first: int, count: int) -> "TensorSpec":
        """`count` of the outermost rows from `first` on: (count, ...), the same memory.

        ShapeError where there are not as many, or where the first does not begin at a multiple of 256 bytes, which is
        all that WebGPU binds.
        """
        row_size_bytes = self._span // self.shape[0] * dtype_size_bytes(self.dtype)
        offset = self.offset_bytes + first * row_size_bytes
        if not 0 <= first < first + count <= self.shape[0]:
            raise ShapeError(f"{self.name}: rows {first} to {first + count} must be some of its {self.shape[0]}")
        if offset % VIEW_ALIGNMENT_BYTES:
            raise ShapeError(f"{self.name}: row {first} begins at byte {offset}, not a multiple of 256")
        return replace(self, shape=(count, *self.shape[1:]), base=self.storage, offset_bytes=offset)

    def columns(self, first: int, count: int) -> "TensorSpec":
        """`count` of the last dimension's elements from `first` on: (..., count), the same memory.

        Kernels that take one bind it by `read_columns`, and go by its `row_stride` and `first_column`. ShapeError where
        there are not as many, or where vectors of 4 do not begin and end with them.
        """
        if len(self.shape) < 2 or not 0 <= first < first + count <= self.shape[-1]:
            raise ShapeError(f"{self.name}: columns {first} to {first + count} must be some of rows {self.shape}")
        if first % 4 or count % 4 or self.row_stride % 4:
            raise ShapeError(f"{self.name}: columns {first} to {first + count} of {self.shape} must be vectors of 4")
        if self.padding:
            raise ShapeError(f"{self.name}: columns of rows that end with {self.padding} padding channels are unknown")
        shape, first = (*self.shape[:-1], count), self.first_column + first
        return replace(self, shape=shape, base=self.storage, first_column=first, columns_of=self.row_stride)

    def split_columns(self, count: int) -> "tuple[TensorSpec, ...]":
        """`count` views of as many columns each."""
        width = self.shape[-1] // count
        if width * count != self.shape[-1]:
            raise ShapeError(f"{self.name}: {self.shape[-1]} columns must be a multiple of {count} to be so many views")
        return tuple(self.columns(index * width, width) for index in range(count))

    def __repr__(self) -> str:
        return f"{self.name}{list(self.shape)}:{self.dtype}"
