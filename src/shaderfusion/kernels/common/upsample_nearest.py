"""Nearest-neighbour upsampling by an integer."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.tensor import TensorSpec

__all__ = ["upsample_nearest"]

_WORKGROUP_SIZE = 128


def upsample_nearest(x: TensorSpec, out: TensorSpec, *, scale: int = 2) -> KernelCall:
    """out[b, y, x] = x[b, y // scale, x // scale]; x: (B, H, W, C), out: (B, scale H, scale W, C)."""
    if scale < 1:
        raise ShapeError(f"upsample_nearest: scale (={scale}) must be at least 1")
    if len(x.shape) != 4:
        raise ShapeError(f"upsample_nearest: {x} must be (B, H, W, C)")
    B, H, W, C = x.shape
    if out.shape != (B, scale * H, scale * W, C) or out.dtype != x.dtype:
        raise ShapeError(f"upsample_nearest: {out} must be {(B, scale * H, scale * W, C)} {x.dtype}")
    chunks = C // 4 if C % 4 == 0 else C
    return KernelCall(
        source="common/upsample_nearest.wgsl",
        entry_point="upsample_nearest",
        dtype=out.dtype,
        bindings=read(x) + write(out),
        constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, "SCALE": scale, "VEC4": C % 4 == 0},
        params={"rows": B * H, "width": W, "channels": C},
        workgroups=spread_workgroups(ceil_div(B * scale * H * scale * W * chunks, _WORKGROUP_SIZE)),
    )
