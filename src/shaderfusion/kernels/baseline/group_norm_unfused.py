"""Group normalization, a dispatch per step, with tensors between: what the one-dispatch group norm replaces."""

import math

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import Binding, KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.kernels.common.elementwise import Activation, activate
from shaderfusion.tensor import TensorSpec

__all__ = ["group_norm_unfused", "require_group_norm_shapes"]

_WORKGROUP_SIZE = 128
_SUM_INVOCATIONS = 65536
"""How many partial sums keep a large GPU busy; more of them only make the tensors between larger."""
_MIN_SLICE_PIXELS = 8


def group_norm_unfused(
    x: TensorSpec,
    weight: TensorSpec,
    bias: TensorSpec,
    out: TensorSpec,
    *,
    num_groups: int,
    eps: float,
    activation: Activation | None = None,
    fold_activation: bool = False,
) -> tuple[KernelCall, ...]:
    """out = activation((x - mean_g) / sqrt(var_g + eps) * weight + bias); x, out: (B, ..., C), weight, bias: (C).

    Dispatches: partial sums, mean, partial sums of squares, variance, normalize and, if any, the activation, which
    `fold_activation` makes part of normalize, for groups that are too large for one workgroup.
    """
    require_group_norm_shapes(x, weight, bias, out, num_groups=num_groups)
    B, C = x.shape[0], x.shape[-1]
    pixels = math.prod(x.shape[1:-1])
    chunks = C // 4 if C % 4 == 0 else C
    slices = min(ceil_div(_SUM_INVOCATIONS, B * chunks), ceil_div(pixels, _MIN_SLICE_PIXELS))
    slice_pixels = ceil_div(pixels, slices)
    slices = ceil_div(pixels, slice_pixels)

    sums = TensorSpec(f"{out.name}.sums", (B, slices, C), "f32")
    means = TensorSpec(f"{out.name}.mean", (B, num_groups), "f32")
    squares = TensorSpec(f"{out.name}.squares", (B, slices, C), "f32")
    variances = TensorSpec(f"{out.name}.variance", (B, num_groups), "f32")
    folded = activation if fold_activation else None
    normalized = out if activation is None or folded else TensorSpec(f"{out.name}.normalized", x.shape, x.dtype)

    def step(entry_point: str, workgroups: int, bindings: tuple[Binding, ...]) -> KernelCall:
        return KernelCall(
            source="baseline/group_norm_unfused.wgsl",
            entry_point=entry_point,
            dtype=x.dtype,
            bindings=bindings,
            constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, "ROW_LANES": _WORKGROUP_SIZE, "VEC4": C % 4 == 0}
            | ({"ACTIVATION": folded} if folded and entry_point == "normalize_channels" else {}),
            params={
                "batch": B,
                "pixels": pixels,
                "channels": C,
                "num_groups": num_groups,
                "slices": slices,
                "slice_pixels": slice_pixels,
                "eps": float(eps),
            },
            workgroups=spread_workgroups(workgroups),
        )

    sum_workgroups = ceil_div(B * slices * chunks, _WORKGROUP_SIZE)
    calls = (
        step("sum_channels", sum_workgroups, read(x) + write(sums)),
        step("mean", B * num_groups, read(sums) + write(means)),
        step("sum_squares", sum_workgroups, read(x, means) + write(squares)),
        step("variance", B * num_groups, read(squares) + write(variances)),
        step(
            "normalize_channels",
            ceil_div(B * pixels * chunks, _WORKGROUP_SIZE),
            read(x, means, variances, weight, bias) + write(normalized),
        ),
    )
    return calls if activation is None or folded else (*calls, activate(normalized, out, activation=activation))


def require_group_norm_shapes(
    x: TensorSpec, weight: TensorSpec, bias: TensorSpec, out: TensorSpec, *, num_groups: int
) -> None:
    """ShapeError unless these are the tensors of a group normalization."""
    C = x.shape[-1]
    if len(x.shape) < 2 or out.shape != x.shape:
        raise ShapeError(f"group_norm: {x} and {out} must have one shape (B, ..., C)")
    if num_groups < 1 or C % num_groups:
        raise ShapeError(f"group_norm: channels (={C}) must be divisible by num_groups (={num_groups})")
    for tensor in (weight, bias):
        if tensor.shape != (C,):
            raise ShapeError(f"group_norm: {tensor} must have shape ({C},), the channels of {x}")
    for tensor in (weight, bias, out):
        if tensor.dtype != x.dtype:
            raise ShapeError(f"group_norm: {tensor} must have the dtype of {x}")
