"""What a device can do, as far as kernels depend on it. The defaults are what every WebGPU device guarantees."""

from dataclasses import dataclass

from shaderfusion.kernels.tiles import MATRIX_WORKGROUP_BYTES, Lanes, MatrixUnits
from shaderfusion.tensor import DType

__all__ = ["DESKTOP_GPU", "WEBGPU_DEFAULTS", "Capabilities", "MatrixShape"]

_MATRIX_SIDES = frozenset((8, 16))
_MATRIX_SUBGROUP_SIZES = frozenset((8, 16, 32, 64))
"""Those that all tiles of matrix units can be divided into."""


@dataclass(frozen=True)
class MatrixShape:
    """A product that a subgroup does at once on matrix units: (m, k) times (k, n), added to (m, n)."""

    m: int
    n: int
    k: int
    operand: DType
    """Of both factors."""
    result: DType
    """Of the sums."""


@dataclass(frozen=True)
class Capabilities:
    """Limits and features of one device. No kernel assumes more than these say."""

    max_binding_bytes: int = 1 << 27
    """Of one tensor, or view of a tensor, that a shader reads or writes."""
    max_buffer_bytes: int = 1 << 28
    """Of one tensor's memory; a larger one than a binding is used view by view."""
    max_workgroup_bytes: int = 16384
    """Memory that the invocations of a workgroup share."""
    max_invocations: int = 256
    """Of a workgroup."""
    max_workgroup_size_x: int = 256
    max_storage_buffers: int = 8
    """That one shader binds."""
    subgroup_sizes: tuple[int, int] | None = None
    """The least and the largest, where the driver says."""
    has_f16: bool = False
    has_int64: bool = False
    """Shaders have 64-bit integers."""
    has_subgroups: bool = False
    """Shaders exchange values within a subgroup."""
    matrix_shapes: tuple[MatrixShape, ...] = ()
    """Of products of f16, summed in f32, on the device's matrix units."""
    timestamp_period_ns: float | None = None
    """What a timestamp counts; None where the device has no timestamps."""
    is_cpu: bool = False
    """A software implementation, such as llvmpipe."""
    memory_bytes: int | None = None
    """Of the device's own memory, where the driver says."""

    @property
    def matrix_units(self) -> MatrixUnits | None:
        """The largest product of `matrix_shapes` that kernels can use, by a subgroup of a size that the device has.

        None where there is none, or too little workgroup memory for its tiles, and on CPUs, whose lanes do as well.
        """
        if self.exchanges_lanes or self.max_workgroup_bytes < MATRIX_WORKGROUP_BYTES:
            return None
        shapes = [shape for shape in self.matrix_shapes if {shape.m, shape.n, shape.k} <= _MATRIX_SIDES]
        least, largest = self.subgroup_sizes or (0, 0)
        size = max(least, min(32, largest))
        if not shapes or size not in _MATRIX_SUBGROUP_SIZES:
            return None
        shape = max(shapes, key=lambda shape: (shape.m * shape.n * shape.k, shape.m))
        return MatrixUnits(shape.m, shape.n, shape.k, size, sized=least < largest)

    def matrix_units_of(self, dtype: DType) -> MatrixUnits | None:
        """Those that products of that dtype use; None in f32 and on devices without."""
        return self.matrix_units if dtype == "f16" else None

    def products_of(self, dtype: DType) -> Lanes | MatrixUnits | None:
        """What does products of that dtype; None for the registers of a GPU."""
        if self.exchanges_lanes:
            return Lanes(self.has_int64 and dtype == "f32", are_four=self.has_four_lanes)
        return self.matrix_units_of(dtype)

    def has_subgroups_of(self, size: int) -> bool:
        """Whether shaders exchange values within subgroups, and all are of that size."""
        return self.has_subgroups and self.subgroup_sizes == (size, size)

    @property
    def exchanges_lanes(self) -> bool:
        """Whether products had better exchange values among a subgroup's lanes (fragments/lane_matmul): on CPUs."""
        return self.is_cpu and self.has_subgroups

    @property
    def has_four_lanes(self) -> bool:
        """Whether they are those of SwiftShader, the browsers' software adapter: 4 in every subgroup."""
        return self.exchanges_lanes and self.has_subgroups_of(4)

    @property
    def max_workgroup_size(self) -> int:
        """The largest workgroup of one dimension."""
        return min(self.max_invocations, self.max_workgroup_size_x)


WEBGPU_DEFAULTS = Capabilities()

DESKTOP_GPU = Capabilities(
    max_binding_bytes=2**31 - 4,
    max_buffer_bytes=2**31 - 4,
    max_workgroup_bytes=32768,
    max_invocations=1024,
    max_workgroup_size_x=1024,
    has_f16=True,
    has_subgroups=True,
)
"""What GPUs of desktops grant at least, for estimates without a device."""
