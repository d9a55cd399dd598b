"""a GELU(b) in three dispatches: what the one-dispatch GEGLU replaces."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.kernels.common.elementwise import activate, multiply
from shaderfusion.tensor import TensorSpec

__all__ = ["geglu_unfused", "require_halves"]

_WORKGROUP_SIZE = 128


def geglu_unfused(x: TensorSpec, out: TensorSpec) -> tuple[KernelCall, ...]:
    """out = a GELU(b) with [a, b] = x; x: (B, N, 2 C), out: (B, N, C). Split, GELU, product: a dispatch each."""
    C = require_halves(x, out)
    a, b, gate = (TensorSpec(f"{out.name}.{name}", out.shape, out.dtype) for name in ("a", "b", "gate"))
    split = KernelCall(
        source="baseline/geglu_unfused.wgsl",
        entry_point="split",
        dtype=x.dtype,
        bindings=read(x) + write(a, b),
        constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, "VEC4": C % 4 == 0},
        params={"rows": x.size // (2 * C), "channels": C},
        workgroups=spread_workgroups(ceil_div(x.size // (4 if C % 4 == 0 else 1), _WORKGROUP_SIZE)),
    )
    return split, activate(b, gate, activation="gelu"), multiply(a, gate, out)


def require_halves(x: TensorSpec, out: TensorSpec) -> int:
    """C, the channels of out (..., C); ShapeError unless x is (..., 2 C) of its dtype."""
    if x.shape[-1] % 2:
        raise ShapeError(f"geglu: channels (={x.shape[-1]}) of {x} must be even, two halves")
    C = x.shape[-1] // 2
    if out.shape != (*x.shape[:-1], C) or out.dtype != x.dtype:
        raise ShapeError(f"geglu: {out} must be {(*x.shape[:-1], C)} {x.dtype}, half the channels of {x}")
    return C
