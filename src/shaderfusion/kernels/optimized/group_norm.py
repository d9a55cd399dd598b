"""Group normalization, with the activation that follows, in one dispatch."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall, ceil_div, read, write
from shaderfusion.kernels.common.elementwise import Activation
from shaderfusion.kernels.common.group_norm_statistics import require_group_norm_shapes
from shaderfusion.tensor import TensorSpec

__all__ = ["group_norm"]

_MAX_CACHED = 64
"""Values of a group that a lane keeps in registers."""


def group_norm(
    x: TensorSpec,
    weight: TensorSpec,
    bias: TensorSpec,
    out: TensorSpec,
    *,
    num_groups: int,
    eps: float,
    activation: Activation | None = None,
    workgroup_size: int = 256,
    shares: int = 1,
) -> KernelCall:
    """out = activation((x - mean_g) / sqrt(var_g + eps) * weight + bias); x, out: (B, ..., C), weight, bias: (C).

    `shares` workgroups read each group, and each writes its share, to occupy a GPU that has more room than groups.
    """
    require_group_norm_shapes(x, weight, bias, out, num_groups=num_groups)
    if x.padding:
        raise ShapeError(f"group_norm: {x} must have no padding channels (={x.padding}); take group_norm_unfused")
    B, C = x.shape[0], x.shape[-1]
    group_channels = C // num_groups
    width = 4 if group_channels % 4 == 0 else 2 if group_channels % 2 == 0 else 1
    group_parts = group_channels // width
    if group_parts > workgroup_size:
        raise ShapeError(
            f"group_norm: channels of a group (={group_channels}) must be at most {width * workgroup_size}, "
            f"{width} for each of workgroup_size (={workgroup_size}) lanes"
        )
    pixels = x.size // (B * C)
    turns = ceil_div(pixels, workgroup_size // group_parts)
    constants: dict[str, int | bool | str] = {"WORKGROUP_SIZE": workgroup_size, "ROW_LANES": workgroup_size}
    constants |= {"GROUP_PARTS": group_parts, "SHARES": shares}
    if width * turns <= _MAX_CACHED:
        constants |= {"CACHED": True, "TURNS": turns}
    return KernelCall(
        source="optimized/group_norm.wgsl",
        entry_point="group_norm",
        dtype=x.dtype,
        bindings=read(x, weight, bias) + write(out),
        constants={**constants, f"WIDTH_{width}": True, "ACTIVATION": activation or "none"},
        params={"pixels": pixels, "channels": C, "eps": float(eps)},
        workgroups=(num_groups, B, shares),
    )
