"""Layer normalization over channels, in one dispatch."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.tensor import TensorSpec

__all__ = ["layer_norm"]

_WORKGROUP_SIZE = 128


def layer_norm(
    x: TensorSpec,
    weight: TensorSpec,
    bias: TensorSpec,
    out: TensorSpec,
    *,
    eps: float,
    row_lanes: int = 32,
    subgroup_rows: bool = False,
) -> KernelCall:
    """out = (x - mean) / sqrt(var + eps) * weight + bias; x, out: (..., C), weight, bias: (C).

    Mean and variance are of the channels without x's padding, for which weight and bias hold zeros. `row_lanes`, a
    multiple of 8 that divides 128, share a row; with `subgroup_rows` they are a subgroup of the device.
    """
    C = x.shape[-1]
    if out.shape != x.shape or out.padding != x.padding:
        raise ShapeError(f"layer_norm: {out} must have the shape of {x}, and its padding")
    for tensor in (weight, bias):
        if tensor.shape != (C,):
            raise ShapeError(f"layer_norm: {tensor} must have shape ({C},), the channels of {x}")
    for tensor in (weight, bias, out):
        if tensor.dtype != x.dtype:
            raise ShapeError(f"layer_norm: {tensor} must have the dtype of {x}")
    rows = x.size // C
    vec4 = C % 4 == 0
    return KernelCall(
        source="common/layer_norm.wgsl",
        entry_point="layer_norm",
        dtype=x.dtype,
        bindings=read(x, weight, bias) + write(out),
        constants={
            "WORKGROUP_SIZE": _WORKGROUP_SIZE,
            "ROW_LANES": row_lanes,
            "VEC4": vec4,
            "CHUNKS": ceil_div(C // 4 if vec4 else C, row_lanes),
            "SUBGROUP_ROWS": subgroup_rows,
        },
        params={"rows": rows, "channels": x.channels, "row_stride": C, "eps": float(eps)},
        workgroups=spread_workgroups(ceil_div(rows, _WORKGROUP_SIZE // row_lanes)),
    )
