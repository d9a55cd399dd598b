"""Group normalization, a dispatch per step, with tensors between: what the one-dispatch group norm replaces."""

from dataclasses import replace

from shaderfusion.kernels.call import KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.kernels.common.elementwise import Activation, activate
from shaderfusion.kernels.common.group_norm_statistics import (
    FoldedGroupNorm,
    group_norm_statistics,
    require_group_norm_shapes,
)
from shaderfusion.kernels.strips import PixelStrip, pixel_strips
from shaderfusion.tensor import TensorSpec

__all__ = ["group_norm_unfused", "normalize"]

_WORKGROUP_SIZE = 128
_PIXELS = 4
"""That an invocation normalizes: what it knows of its channels serves all of them."""


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
    max_binding_bytes: int | None = None,
) -> tuple[KernelCall, ...]:
    """out = activation((x - mean_g) / sqrt(var_g + eps) * weight + bias); x, out: (B, ..., C), weight, bias: (C).

    Groups are of the channels without x's padding, for which weight and bias hold zeros. Dispatches: the two of
    group_norm_statistics, normalize and, if any, the activation, which `fold_activation` makes part of normalize, for
    groups that are too large for one workgroup; strip by strip where x is larger than max_binding_bytes.
    """
    require_group_norm_shapes(x, weight, bias, out, num_groups=num_groups)
    means = TensorSpec(f"{out.name}.mean", (x.shape[0], num_groups), "f32")
    variances = TensorSpec(f"{out.name}.variance", means.shape, "f32")
    norm = FoldedGroupNorm(means, variances, weight, bias, eps, activation)
    calls = list(group_norm_statistics(x, means, variances, max_binding_bytes=max_binding_bytes))
    strips = [PixelStrip((x, out), 0)] if max_binding_bytes is None else pixel_strips(max_binding_bytes, x, out)
    for strip in strips:
        part, part_out = strip.tensors
        own = replace(norm, first_image=strip.first_image)
        calls += normalize(part, own, part_out, fold_activation=fold_activation)
    return tuple(calls)


def normalize(
    x: TensorSpec, norm: FoldedGroupNorm, out: TensorSpec, *, fold_activation: bool = False
) -> tuple[KernelCall, ...]:
    """The steps of group_norm_unfused after the statistics, which `norm` has; x, out: (B, ..., C), some of its images.

    out = activation((x - mean_g) / sqrt(var_g + eps) * weight + bias)
    """
    B, C = x.shape[0], x.shape[-1]
    pixels = x.size // (B * C)
    num_groups = norm.means.shape[-1]
    require_group_norm_shapes(x, norm.weight, norm.bias, out, num_groups=num_groups)
    chunk = 4 if C % 4 == 0 else 1
    folded = norm.activation if fold_activation else None
    normalized = out
    if norm.activation and not folded:
        normalized = TensorSpec(f"{out.name}.normalized", x.shape, x.dtype)
    call = KernelCall(
        source="baseline/group_norm_unfused.wgsl",
        entry_point="group_norm_unfused",
        dtype=x.dtype,
        bindings=read(x, norm.means, norm.variances, norm.weight, norm.bias) + write(normalized),
        constants={
            "WORKGROUP_SIZE": _WORKGROUP_SIZE,
            "PIXELS": _PIXELS,
            "VEC4": chunk == 4,
            "ACTIVATION": folded or "none",
        },
        params={
            "batch": B,
            "pixels": pixels,
            "channels": C,
            "first_image": norm.first_image,
            "num_groups": num_groups,
            "group_channels": x.channels // num_groups,
            "eps": float(norm.eps),
        },
        workgroups=spread_workgroups(ceil_div(B * ceil_div(pixels, _PIXELS) * C // chunk, _WORKGROUP_SIZE)),
    )
    if normalized is out:
        return (call,)
    return call, activate(normalized, out, activation=norm.activation)
