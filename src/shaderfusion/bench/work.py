"""What one dispatch computes and moves, from its call alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from shaderfusion.kernels.call import KernelCall
from shaderfusion.tensor import dtype_size_bytes

__all__ = ["Work", "work_of"]


_ADDED = ("NORM", "BIAS", "IMAGE_BIAS", "RESIDUAL", "GEGLU", "SOFTMAX", "SPLIT")
"""Flags of products and of Winograd's transforms that change what a call binds."""


@dataclass(frozen=True)
class Work:
    """Of one dispatch."""

    shape: str
    """The problem's size, as a person would write it."""
    flop: int
    """Of the matrix products in it, a multiplication and an addition being 2; 0 where there is none."""
    size_bytes: int
    """Of what it reads and writes, each value counted once, though caches may save, and tiles repeat, some."""


def work_of(call: KernelCall) -> Work:
    """The work of any call of the models' graphs."""
    work = _work_of(call)
    added = [name.lower().replace("_", " ") for name in _ADDED if call.constants.get(name)]
    return replace(work, shape=" + ".join((work.shape, *added)))


def _work_of(call: KernelCall) -> Work:
    if call.entry_point == "product":
        return _product(call)
    if call.name == "flash_attention":
        return _flash_attention(call)
    if call.name.startswith("winograd_conv."):
        return _winograd_transform(call)
    largest = max((binding.tensor for binding in call.bindings), key=lambda tensor: tensor.size)
    return Work("x".join(map(str, largest.shape)), 0, _bound_bytes(call))


def _bound_bytes(call: KernelCall) -> int:
    """Of all tensors; those that are read and written count twice."""
    return sum(binding.tensor.size_bytes * (2 if "_" in binding.access else 1) for binding in call.bindings)


def _product(call: KernelCall) -> Work:
    p: Mapping[str, Any] = call.params
    rows, columns, depth, batches = (p[name] for name in ("num_rows", "num_columns", "depth", "num_batches"))
    times = f"{batches} of " if batches > 1 else ""
    shape = f"{times}{rows} x {columns} x {depth}"
    if "KERNEL_SIZE" in call.constants:
        size = f"{call.constants['KERNEL_SIZE']}x{call.constants['KERNEL_SIZE']}"
        x = "x".join(map(str, call.bindings[0].tensor.shape))
        upsampled = " upsampled" if call.constants["UPSAMPLE"] != 1 else ""
        stride = f", stride {call.constants['STRIDE']}" if call.constants["STRIDE"] != 1 else ""
        shape = f"{x}{upsampled} by {size} to {columns}{stride}"
    return Work(shape, 2 * batches * rows * columns * depth, _bound_bytes(call))


def _flash_attention(call: KernelCall) -> Work:
    p: Mapping[str, Any] = call.params
    _, heads, B = call.workgroups
    D: Any = call.constants["D"]
    shape = f"{B * heads} of {p['queries']} x {p['keys']}, D = {D}"
    return Work(shape, 4 * B * heads * p["queries"] * p["keys"] * D, _bound_bytes(call))


def _winograd_transform(call: KernelCall) -> Work:
    """Of a strip's tiles, or of all filters; a strip binds whole tensors but uses a part of them."""
    p: Mapping[str, Any] = call.params
    m: Any = call.constants["M"]
    pixels, values = m * m, (m + 2) ** 2  # of a tile before, or after, and in the transformed domain
    match call.entry_point:
        case "transform_input":
            upsample: Any = call.constants.get("UPSAMPLE", 1)
            shape, size = f"{p['num_tiles']} tiles x {p['in_channels']}", p["num_tiles"] * p["in_channels"]
            size *= values + pixels // upsample**2
        case "transform_filters":
            shape, size = f"{p['in_channels']} to {p['num_channels']}", p["in_channels"] * p["num_channels"]
            size *= values + 9
        case _:
            shape, size = f"{p['num_tiles']} tiles x {p['slice_channels']}", p["num_tiles"] * p["slice_channels"]
            size *= values + pixels * (2 if "RESIDUAL" in call.constants else 1)
    return Work(f"m = {m}, {shape}", 0, size * dtype_size_bytes(call.dtype))
