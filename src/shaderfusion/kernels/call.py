"""One dispatch of one compute shader, as pure data: nothing here knows a device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shaderfusion.errors import ShapeError
from shaderfusion.tensor import DType, TensorSpec

__all__ = [
    "KERNELS_FOLDER",
    "Access",
    "Binding",
    "InputRows",
    "KernelCall",
    "ceil_div",
    "read",
    "read_columns",
    "spread_workgroups",
    "write",
]

KERNELS_FOLDER = Path(__file__).parent

Access = Literal["read", "write", "read_write"]

MAX_WORKGROUPS_PER_DIMENSION = 65535
"""WebGPU's default limit of a dispatch, which every adapter grants."""


@dataclass(frozen=True)
class Binding:
    """A tensor at a binding. WGSL: `read` is `var<storage, read>`, the others `var<storage, read_write>`."""

    tensor: TensorSpec
    access: Access


def read(*tensors: TensorSpec) -> tuple[Binding, ...]:
    """Bindings that the shader only reads."""
    return _bind_whole_rows(tensors, "read")


def read_columns(*tensors: TensorSpec) -> tuple[Binding, ...]:
    """Bindings, of views of columns too, that the shader only reads, by `row_stride` and `first_column` of each."""
    return tuple(Binding(tensor, "read") for tensor in tensors)


def write(*tensors: TensorSpec) -> tuple[Binding, ...]:
    """Bindings that the shader overwrites."""
    return _bind_whole_rows(tensors, "write")


def _bind_whole_rows(tensors: tuple[TensorSpec, ...], access: Access) -> tuple[Binding, ...]:
    for tensor in tensors:
        if tensor.columns_of is not None:
            raise ShapeError(f"{tensor}: a view of columns is only for kernels that go by strides, such as attention's")
    return tuple(Binding(tensor, access) for tensor in tensors)


@dataclass(frozen=True)
class KernelCall:
    """What to run, on which tensors, with which numbers.

    `constants` make a pipeline each: an int or float becomes `const NAME = value;`, True defines the flag NAME
    for `#ifdef`, and a string, such as ACTIVATION="silu", defines the flag ACTIVATION_SILU.
    `params` may differ from call to call without a new pipeline: `struct Params` in the prelude, in this
    order, ints as u32 and floats as f32, at binding 0. `bindings` follow from binding 1.
    """

    source: str
    """Path of the WGSL file under kernels/."""
    entry_point: str
    dtype: DType
    """What `Elem` means in the shader."""
    bindings: tuple[Binding, ...]
    workgroups: tuple[int, int, int]
    constants: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    params: Mapping[str, int | float] = field(default_factory=dict)
    label: str = ""
    operation: object = None
    """The layer that it is part of (kernels/tuning), where there is more than one way to do it."""

    @property
    def name(self) -> str:
        """The kernel's name: its file's stem, and the pass where the two differ."""
        stem = self.source.rpartition("/")[2].removesuffix(".wgsl")  # a graph may have a hundred thousand calls
        return stem if stem == self.entry_point else f"{stem}.{self.entry_point}"


@dataclass(frozen=True)
class InputRows:
    """Which rows of its input a convolution has, if not all, that makes some rows of its output."""

    first: int
    """Row y of out reads from row stride * y + first - padding of what it has, upsampled."""
    count: int
    """It has so many rows, upsampled. What lies beyond is outside of the image."""


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer at least numerator / denominator."""
    return -(-numerator // denominator)


def spread_workgroups(count: int) -> tuple[int, int, int]:
    """A grid of at least `count` workgroups; the shader's index is `id.x + id.y * num_workgroups.x`."""
    if count < 1:
        raise ShapeError(f"workgroups (={count}) must be at least 1")
    if count <= MAX_WORKGROUPS_PER_DIMENSION:
        return (count, 1, 1)
    rows = ceil_div(count, MAX_WORKGROUPS_PER_DIMENSION)
    return (ceil_div(count, rows), rows, 1)
