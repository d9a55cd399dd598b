"""out = f(x) for an activation f, out = scale x + shift, out = a + b, or out = a b."""

from typing import Literal

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.tensor import TensorSpec

__all__ = ["Activation", "activate", "add", "affine", "multiply"]

Activation = Literal["silu", "gelu", "quick_gelu", "relu", "tanh"]

_WORKGROUP_SIZE = 128


def activate(x: TensorSpec, out: TensorSpec, *, activation: Activation | None) -> KernelCall:
    """out = activation(x), or a copy of x where it is None; both of one shape, any shape."""
    return _call((x,), out, {"OP": "activate", "ACTIVATION": activation or "none"})


def affine(x: TensorSpec, out: TensorSpec, *, scale: float, shift: float) -> KernelCall:
    """out = scale x + shift; both of one shape, any shape. A shift reaches the padding of out too."""
    return _call((x,), out, {"OP": "affine"}, {"scale": float(scale), "shift": float(shift)})


def add(a: TensorSpec, b: TensorSpec, out: TensorSpec) -> KernelCall:
    """out = a + b; all of one shape, any shape."""
    return _call((a, b), out, {"OP": "add", "BINARY": True})


def multiply(a: TensorSpec, b: TensorSpec, out: TensorSpec) -> KernelCall:
    """out = a b, element by element; all of one shape, any shape."""
    return _call((a, b), out, {"OP": "multiply", "BINARY": True})


def _call(
    inputs: tuple[TensorSpec, ...],
    out: TensorSpec,
    constants: dict[str, int | str | bool],
    params: dict[str, float] | None = None,
) -> KernelCall:
    for tensor in inputs:
        if tensor.shape != out.shape or tensor.dtype != out.dtype:
            raise ShapeError(f"elementwise: {tensor} and {out} must have one shape and dtype")
    quads = ceil_div(out.size, 4)
    return KernelCall(
        source="common/elementwise.wgsl",
        entry_point="elementwise",
        dtype=out.dtype,
        bindings=read(*inputs) + write(out),
        constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, **constants},
        params={"quads": quads, **(params or {})},
        workgroups=spread_workgroups(ceil_div(quads, _WORKGROUP_SIZE)),
    )
