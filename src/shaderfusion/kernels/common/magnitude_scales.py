"""By what the channels of a weight are multiplied to have given norms: DoRA (Liu et al. 2024, arXiv 2402.09353)."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import Binding, KernelCall, read, spread_workgroups, write
from shaderfusion.tensor import TensorSpec

__all__ = ["magnitude_scales"]

_WORKGROUP_SIZE = 64


def magnitude_scales(x: TensorSpec, magnitudes: TensorSpec, squares: TensorSpec, scales: TensorSpec) -> KernelCall:
    """squares += sum x^2 of each channel, scales = magnitudes / sqrt(squares), or 0 where that is 0.

    x: (A, G, B), of G channels; the others (G,), f32. Of slices of x along A the last one's scales are those of x.
    """
    _, G, B = x.shape
    for tensor in (magnitudes, squares, scales):
        if tensor.shape != (G,) or tensor.dtype != "f32":
            raise ShapeError(f"magnitude_scales: {tensor} must be f32, of the {G} channels of {x}")
    return KernelCall(
        source="common/magnitude_scales.wgsl",
        entry_point="magnitude_scales",
        dtype=x.dtype,
        bindings=(*read(x, magnitudes), Binding(squares, "read_write"), *write(scales)),
        constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, "ROW_LANES": _WORKGROUP_SIZE},
        params={"channels": G, "inner": B, "count": x.size // G},
        workgroups=spread_workgroups(G),
    )
