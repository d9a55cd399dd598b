"""Group normalization, a dispatch per step, with tensors between: what the one-dispatch group norm replaces."""

import math
from dataclasses import dataclass, replace

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import Binding, KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.kernels.common.elementwise import Activation, activate
from shaderfusion.tensor import TensorSpec

__all__ = ["FoldedGroupNorm", "group_norm_statistics", "group_norm_unfused", "require_group_norm_shapes"]

_WORKGROUP_SIZE = 128
_SUM_INVOCATIONS = 65536
"""How many partial sums keep a large GPU busy; more of them only make the tensors between larger."""
_MIN_SLICE_PIXELS = 8


@dataclass(frozen=True)
class FoldedGroupNorm:
    """A group normalization, and the activation that follows, left to the kernel that loads the values."""

    means: TensorSpec
    """(B, G) f32, by group_norm_statistics."""
    variances: TensorSpec
    """(B, G) f32, by group_norm_statistics."""
    weight: TensorSpec
    """(C,)"""
    bias: TensorSpec
    """(C,)"""
    eps: float
    activation: Activation | None = None

    def into(self, call: KernelCall, x: TensorSpec) -> KernelCall:
        """A call that loads x (B, ..., C) in fours, with what fragments/normalize needs; ShapeError for another x."""
        _require_statistics(x, self.means, self.variances)
        num_groups, C = self.means.shape[1], x.shape[-1]
        require_group_norm_shapes(x, self.weight, self.bias, x, num_groups=num_groups)
        return replace(
            call,
            bindings=call.bindings + read(self.means, self.variances, self.weight, self.bias),
            constants={**call.constants, "NORM": True, "VEC4": True, "ACTIVATION": self.activation or "none"},
            params={
                **call.params,
                "num_groups": num_groups,
                "group_channels": C // num_groups,
                "eps": float(self.eps),
            },
        )


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

    Dispatches: the four of group_norm_statistics, normalize and, if any, the activation, which `fold_activation` makes
    part of normalize, for groups that are too large for one workgroup.
    """
    require_group_norm_shapes(x, weight, bias, out, num_groups=num_groups)
    means = TensorSpec(f"{out.name}.mean", (x.shape[0], num_groups), "f32")
    variances = TensorSpec(f"{out.name}.variance", means.shape, "f32")
    folded = activation if fold_activation else None
    normalized = out if activation is None or folded else TensorSpec(f"{out.name}.normalized", x.shape, x.dtype)
    normalize = _step(
        "normalize_channels",
        x,
        num_groups,
        read(x, means, variances, weight, bias) + write(normalized),
        ceil_div(x.size // _chunk(x), _WORKGROUP_SIZE),
        eps=eps,
        activation=folded,
    )
    calls = (*group_norm_statistics(x, means, variances), normalize)
    return calls if activation is None or folded else (*calls, activate(normalized, out, activation=activation))


def group_norm_statistics(x: TensorSpec, means: TensorSpec, variances: TensorSpec) -> tuple[KernelCall, ...]:
    """Mean and variance of each group; x: (B, ..., C), means, variances: (B, G) f32.

    Dispatches: partial sums, mean, partial sums of squares about the mean, variance.
    """
    B, C = x.shape[0], x.shape[-1]
    num_groups = _require_statistics(x, means, variances)
    slices, _ = _slices(x)
    sums = TensorSpec(f"{means.name}.sums", (B, slices, C), "f32")
    squares = TensorSpec(f"{variances.name}.squares", (B, slices, C), "f32")
    num_workgroups = ceil_div(B * slices * C // _chunk(x), _WORKGROUP_SIZE)
    return (
        _step("sum_channels", x, num_groups, read(x) + write(sums), num_workgroups),
        _step("mean", x, num_groups, read(sums) + write(means), B * num_groups),
        _step("sum_squares", x, num_groups, read(x, means) + write(squares), num_workgroups),
        _step("variance", x, num_groups, read(squares) + write(variances), B * num_groups),
    )


def _require_statistics(x: TensorSpec, means: TensorSpec, variances: TensorSpec) -> int:
    """G; ShapeError unless both are (B, G) f32 with C a multiple of G."""
    B, C, G = x.shape[0], x.shape[-1], means.shape[-1]
    if not means.shape == variances.shape == (B, G) or not means.dtype == variances.dtype == "f32" or C % G:
        raise ShapeError(f"group_norm: {means} and {variances} must be (B, G) f32 for {x}, with C a multiple of G")
    return G


def _chunk(x: TensorSpec) -> int:
    """Channels that one load moves."""
    return 4 if x.shape[-1] % 4 == 0 else 1


def _slices(x: TensorSpec) -> tuple[int, int]:
    """Into how many slices an image's pixels are cut, and the pixels of each but the last."""
    B, *sides, C = x.shape
    pixels = math.prod(sides)
    slices = min(ceil_div(_SUM_INVOCATIONS, B * C // _chunk(x)), ceil_div(pixels, _MIN_SLICE_PIXELS))
    slice_pixels = ceil_div(pixels, slices)
    return ceil_div(pixels, slice_pixels), slice_pixels


def _step(
    entry_point: str,
    x: TensorSpec,
    num_groups: int,
    bindings: tuple[Binding, ...],
    num_workgroups: int,
    *,
    eps: float = 0.0,
    activation: Activation | None = None,
) -> KernelCall:
    """One dispatch. Only normalize_channels uses eps and the activation."""
    B, *sides, C = x.shape
    slices, slice_pixels = _slices(x)
    return KernelCall(
        source="baseline/group_norm_unfused.wgsl",
        entry_point=entry_point,
        dtype=x.dtype,
        bindings=bindings,
        constants={
            "WORKGROUP_SIZE": _WORKGROUP_SIZE,
            "ROW_LANES": _WORKGROUP_SIZE,
            "VEC4": _chunk(x) == 4,
            "ACTIVATION": activation or "none",
        },
        params={
            "batch": B,
            "pixels": math.prod(sides),
            "channels": C,
            "num_groups": num_groups,
            "group_channels": C // num_groups,
            "slices": slices,
            "slice_pixels": slice_pixels,
            "eps": float(eps),
        },
        workgroups=spread_workgroups(num_workgroups),
    )


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
