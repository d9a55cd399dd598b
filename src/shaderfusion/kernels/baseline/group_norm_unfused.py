"""Group normalization, a dispatch per step, with tensors between: what the one-dispatch group norm replaces."""

from shaderfusion.kernels.call import KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.kernels.common.elementwise import Activation, activate
from shaderfusion.kernels.common.group_norm_statistics import group_norm_statistics, require_group_norm_shapes
from shaderfusion.kernels.strips import PixelStrip, pixel_strips
from shaderfusion.tensor import TensorSpec

__all__ = ["group_norm_unfused"]

_WORKGROUP_SIZE = 128


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

    Groups are of the channels without x's padding, for which weight and bias hold zeros. Dispatches: the four of
    group_norm_statistics, normalize and, if any, the activation, which `fold_activation` makes part of normalize, for
    groups that are too large for one workgroup; strip by strip where x is larger than max_binding_bytes.
    """
    require_group_norm_shapes(x, weight, bias, out, num_groups=num_groups)
    C = x.shape[-1]
    chunk = 4 if C % 4 == 0 else 1
    means = TensorSpec(f"{out.name}.mean", (x.shape[0], num_groups), "f32")
    variances = TensorSpec(f"{out.name}.variance", means.shape, "f32")
    folded = activation if fold_activation else None
    calls = list(group_norm_statistics(x, means, variances, max_binding_bytes=max_binding_bytes))
    strips = [PixelStrip((x, out), 0)] if max_binding_bytes is None else pixel_strips(max_binding_bytes, x, out)
    for strip in strips:
        part, part_out = strip.tensors
        normalized = part_out
        if activation and not folded:
            normalized = TensorSpec(f"{out.name}.normalized", part.shape, x.dtype)
        normalize = KernelCall(
            source="baseline/group_norm_unfused.wgsl",
            entry_point="group_norm_unfused",
            dtype=x.dtype,
            bindings=read(part, means, variances, weight, bias) + write(normalized),
            constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, "VEC4": chunk == 4, "ACTIVATION": folded or "none"},
            params={
                "batch": part.shape[0],
                "pixels": part.size // (part.shape[0] * C),
                "channels": C,
                "first_image": strip.first_image,
                "num_groups": num_groups,
                "group_channels": x.channels // num_groups,
                "eps": float(eps),
            },
            workgroups=spread_workgroups(ceil_div(part.size // chunk, _WORKGROUP_SIZE)),
        )
        calls.append(normalize)
        if activation and not folded:
            calls.append(activate(normalized, part_out, activation=activation))
    return tuple(calls)
