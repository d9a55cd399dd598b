"""Two tensors side by side along channels."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.tensor import TensorSpec

__all__ = ["concat_channels"]

_WORKGROUP_SIZE = 128


def concat_channels(a: TensorSpec, b: TensorSpec, out: TensorSpec) -> KernelCall:
    """out = [a, b] along the last dimension; a: (B, ..., CA), b: (B, ..., CB), out: (B, ..., CA + CB).

    Their channels without padding are concatenated; zeros fill the padding of out.
    """
    if a.shape[:-1] != b.shape[:-1]:
        raise ShapeError(f"concat_channels: {a} and {b} must agree in all dimensions but the last")
    channels = a.channels + b.channels
    if out.shape[:-1] != a.shape[:-1] or out.channels != channels:
        raise ShapeError(f"concat_channels: {out} must have shape {(*a.shape[:-1], channels)}, besides padding")
    for tensor in (b, out):
        if tensor.dtype != a.dtype:
            raise ShapeError(f"concat_channels: {tensor} must have the dtype of {a}")
    vec4 = a.channels % 4 == 0 and all(tensor.shape[-1] % 4 == 0 for tensor in (a, b, out))
    return KernelCall(
        source="common/concat_channels.wgsl",
        entry_point="concat_channels",
        dtype=out.dtype,
        bindings=read(a, b) + write(out),
        constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, "VEC4": vec4},
        params={
            "size": out.size,
            "a_channels": a.channels,
            "a_row": a.shape[-1],
            "b_row": b.shape[-1],
            "out_row": out.shape[-1],
        },
        workgroups=spread_workgroups(ceil_div(out.size // (4 if vec4 else 1), _WORKGROUP_SIZE)),
    )
