"""a GELU(b) in one dispatch."""

from shaderfusion.kernels.baseline.geglu_unfused import require_halves
from shaderfusion.kernels.call import KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.tensor import TensorSpec

__all__ = ["geglu"]

_WORKGROUP_SIZE = 128


def geglu(x: TensorSpec, out: TensorSpec) -> KernelCall:
    """out = a GELU(b) with [a, b] = x; x: (B, N, 2 C), out: (B, N, C)."""
    C = require_halves(x, out)
    chunk = 4 if C % 4 == 0 else 1
    return KernelCall(
        source="optimized/geglu.wgsl",
        entry_point="geglu",
        dtype=x.dtype,
        bindings=read(x) + write(out),
        constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, "VEC4": chunk == 4, "ACTIVATION": "gelu"},
        params={"rows": x.size // (2 * C), "channels": C},
        workgroups=spread_workgroups(ceil_div(out.size // chunk, _WORKGROUP_SIZE)),
    )
