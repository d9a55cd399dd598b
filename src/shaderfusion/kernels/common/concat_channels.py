"""Two tensors side by side along channels."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.tensor import TensorSpec

__all__ = ["concat_channels"]

_WORKGROUP_SIZE = 128


def concat_channels(a: TensorSpec, b: TensorSpec, out: TensorSpec) -> KernelCall:
    """out = [a, b] along the last dimension; a: (B, ..., CA), b: (B, ..., CB), out: (B, ..., CA + CB)."""
    if a.shape[:-1] != b.shape[:-1]:
        raise ShapeError(f"concat_channels: {a} and {b} must agree in all dimensions but the last")
    CA, CB = a.shape[-1], b.shape[-1]
    if out.shape != (*a.shape[:-1], CA + CB):
        raise ShapeError(f"concat_channels: {out} must have shape {(*a.shape[:-1], CA + CB)}")
    for tensor in (b, out):
        if tensor.dtype != a.dtype:
            raise ShapeError(f"concat_channels: {tensor} must have the dtype of {a}")
    vec4 = CA % 4 == CB % 4 == 0
    return KernelCall(
        source="common/concat_channels.wgsl",
        entry_point="concat_channels",
        dtype=out.dtype,
        bindings=read(a, b) + write(out),
        constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, "VEC4": vec4},
        params={"rows": a.size // CA, "a_channels": CA, "b_channels": CB},
        workgroups=spread_workgroups(ceil_div(out.size // (4 if vec4 else 1), _WORKGROUP_SIZE)),
    )
