"""Mean and variance of each group of channels, for kernels that normalize by statistics they are given."""

from dataclasses import dataclass, replace

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import Binding, KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.kernels.common.elementwise import Activation
from shaderfusion.kernels.strips import PixelStrip, pixel_strips
from shaderfusion.tensor import TensorSpec

__all__ = ["FoldedGroupNorm", "group_norm_statistics", "merge_statistics", "require_group_norm_shapes"]

_WORKGROUP_SIZE = 128
_LOADS = 8
"""Pixels that an invocation loads at once."""
_JOIN_LANES = 256
"""That join the slices of one group."""
_SLICE_INVOCATIONS = 65536
"""How many invocations keep a large GPU busy; more of them only make the tensors between larger."""
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
    first_image: int = 0
    """Of the B images, the first that the kernel loads."""

    def into(self, call: KernelCall, x: TensorSpec) -> KernelCall:
        """A call that loads x (B, ..., C) in fours, with what fragments/normalize needs; ShapeError for another x."""
        images = range(self.first_image, self.first_image + x.shape[0])
        num_groups = _require_statistics(x, self.means, self.variances, images)
        require_group_norm_shapes(x, self.weight, self.bias, x, num_groups=num_groups)
        return replace(
            call,
            bindings=call.bindings + read(self.means, self.variances, self.weight, self.bias),
            constants={**call.constants, "NORM": True, "VEC4": True, "ACTIVATION": self.activation or "none"},
            params={
                **call.params,
                "first_image": self.first_image,
                "num_groups": num_groups,
                "group_channels": x.channels // num_groups,
                "eps": float(self.eps),
            },
        )


def group_norm_statistics(
    x: TensorSpec, means: TensorSpec, variances: TensorSpec, *, max_binding_bytes: int | None = None
) -> tuple[KernelCall, ...]:
    """Mean and variance of each group, x's padding channels left out; x: (B, ..., C), means, variances: (B, G) f32.

    Dispatches: the statistics of each channel in slices of the image, and those of a group's slices joined (Chan, Golub
    and LeVeque 1979). Where x is larger than max_binding_bytes, each of its strips has the first one.
    """
    B, C = x.shape[0], x.shape[-1]
    num_groups = _require_statistics(x, means, variances, range(B))
    strips = [PixelStrip((x,), 0)] if max_binding_bytes is None else pixel_strips(max_binding_bytes, x)
    slice_pixels = _slice_pixels(x, max_binding_bytes, len(strips))
    strip_slices = [ceil_div(_num_pixels(strip.tensors[0]), slice_pixels) for strip in strips]
    slices = sum(count for strip, count in zip(strips, strip_slices, strict=True) if strip.first_image == 0)
    slice_means = TensorSpec(f"{means.name}.slices", (B, slices, C), "f32")
    slice_squares = TensorSpec(f"{variances.name}.slices", slice_means.shape, "f32")
    common = {"channels": C, "slices": slices, "slice_pixels": slice_pixels}

    calls: list[KernelCall] = []
    first_slice = 0
    for strip, count in zip(strips, strip_slices, strict=True):
        (part,) = strip.tensors
        calls.append(
            KernelCall(
                source="common/group_norm_statistics.wgsl",
                entry_point="slice_statistics",
                dtype=x.dtype,
                bindings=read(part) + write(slice_means, slice_squares),
                constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, "VEC4": C % 4 == 0, "PASS": "slices", "LOADS": _LOADS},
                params={
                    **common,
                    "strip_batch": part.shape[0],
                    "strip_pixels": _num_pixels(part),
                    "strip_slices": count,
                    "first_image": strip.first_image,
                    "first_slice": first_slice,
                },
                workgroups=spread_workgroups(
                    ceil_div(part.shape[0] * count * C // (4 if C % 4 == 0 else 1), _WORKGROUP_SIZE)
                ),
            )
        )
        first_slice = (first_slice + count) % slices
    join = KernelCall(
        source="common/group_norm_statistics.wgsl",
        entry_point="join_slices",
        dtype=x.dtype,
        bindings=read(slice_means, slice_squares) + write(means, variances),
        constants={"WORKGROUP_SIZE": _JOIN_LANES, "ROW_LANES": _JOIN_LANES, "PASS": "join"},
        params={
            **common,
            "batch": B,
            "num_groups": num_groups,
            "group_channels": x.channels // num_groups,
            "image_pixels": _num_pixels(x),
            "strip_pixels": _num_pixels(strips[0].tensors[0]),
            "strip_slices": strip_slices[0],
        },
        workgroups=spread_workgroups(B * num_groups),
    )
    return (*calls, join)


def merge_statistics(
    part_means: TensorSpec,
    part_variances: TensorSpec,
    means: TensorSpec,
    variances: TensorSpec,
    *,
    before: int,
    count: int,
) -> KernelCall:
    """Means and variances of `before` equal parts become those of `count` more as well; all (B, G) f32."""
    tensors = (part_means, part_variances, means, variances)
    if any(tensor.shape != means.shape or tensor.dtype != "f32" for tensor in tensors) or min(before, count) < 1:
        raise ShapeError(f"merge_statistics: {tensors} must be f32 of one shape, before and count at least 1")
    merged = tuple(Binding(tensor, "read_write") for tensor in (means, variances))
    return KernelCall(
        source="common/group_norm_statistics.wgsl",
        entry_point="merge_statistics",
        dtype="f32",
        bindings=read(part_means, part_variances) + merged,
        constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, "PASS": "merge"},
        params={"num_values": means.size, "before": float(before), "count": float(count)},
        workgroups=spread_workgroups(ceil_div(means.size, _WORKGROUP_SIZE)),
    )


def _num_pixels(x: TensorSpec) -> int:
    """Of an image of x (B, ..., C)."""
    return x.size // (x.shape[0] * x.shape[-1])


def _slice_pixels(x: TensorSpec, max_binding_bytes: int | None, num_strips: int) -> int:
    """Pixels of each slice of an image, but the last of a strip: a partial sum is over one slice."""
    B, C, pixels = x.shape[0], x.shape[-1], _num_pixels(x)
    slices = min(ceil_div(_SLICE_INVOCATIONS * (4 if C % 4 == 0 else 1), B * C), ceil_div(pixels, _MIN_SLICE_PIXELS))
    if max_binding_bytes is not None:  # that the slices' statistics fit into, with one slice more for each strip
        slices = max(1, min(slices, max_binding_bytes // (4 * B * C) - num_strips))
    return ceil_div(pixels, slices)


def _require_statistics(x: TensorSpec, means: TensorSpec, variances: TensorSpec, images: range) -> int:
    """G; ShapeError unless both are (B, G) f32, with x's channels a multiple of G, and these images are some of B."""
    B, G = means.shape[0], means.shape[-1]
    fits = images.stop <= B and means.shape == variances.shape == (B, G) and x.channels % G == 0
    if not fits or not means.dtype == variances.dtype == "f32":
        raise ShapeError(f"group_norm: {means} and {variances} must be (B, G) f32 for {x}, with C a multiple of G")
    return G


def require_group_norm_shapes(
    x: TensorSpec, weight: TensorSpec, bias: TensorSpec, out: TensorSpec, *, num_groups: int
) -> None:
    """ShapeError unless these are the tensors of a group normalization."""
    C = x.shape[-1]
    if len(x.shape) < 2 or out.shape != x.shape:
        raise ShapeError(f"group_norm: {x} and {out} must have one shape (B, ..., C)")
    if num_groups < 1 or x.channels % num_groups:
        raise ShapeError(f"group_norm: channels (={x.channels}) must be divisible by num_groups (={num_groups})")
    for tensor in (weight, bias):
        if tensor.shape != (C,):
            raise ShapeError(f"group_norm: {tensor} must have shape ({C},), the channels of {x}")
    for tensor in (weight, bias, out):
        if tensor.dtype != x.dtype:
            raise ShapeError(f"group_norm: {tensor} must have the dtype of {x}")
