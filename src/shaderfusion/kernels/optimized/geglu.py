"""a GELU(b) in one dispatch, or in none: as the epilogue of the product that gives [a, b]."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.baseline.geglu_unfused import require_halves
from shaderfusion.kernels.call import KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.kernels.common.matmul import Epilogue, product_calls, require_multiples_of_4
from shaderfusion.kernels.tiles import AnyTile, MatrixTile, MatrixUnits, Tile, tile_of
from shaderfusion.tensor import TensorSpec

__all__ = ["geglu", "geglu_linear"]

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


def geglu_linear(
    x: TensorSpec, weight: TensorSpec, bias: TensorSpec, out: TensorSpec, *, tile: AnyTile = None
) -> KernelCall:
    """out = a GELU(b) with [a, b] = x weight + bias, for GPUs: common/matmul with the flag GEGLU.

    x: (..., M, K), weight: (K, 2 C), bias: (2 C,), out: (..., M, C). Half of a tile's columns are of a, the others of b
    at the same places, so that [a, b] stays in registers. K is not split: that pays for many rows.
    """
    K, C = x.shape[-1], out.shape[-1]
    if weight.shape != (K, 2 * C) or out.shape[:-1] != x.shape[:-1]:
        raise ShapeError(f"geglu_linear: {x} times {weight} must be twice as wide as {out}")
    require_multiples_of_4("geglu_linear", K=K, C=C)
    in_eights = K % 8 == C % 8 == 0
    if not (isinstance(tile, (Tile, MatrixTile)) or (isinstance(tile, MatrixUnits) and in_eights)):
        tile = tile_of(64, 128, pairs=x.dtype == "f16")
    if isinstance(tile, Tile) and tile.thread_n4 % 2:
        raise ShapeError(f"geglu_linear: {tile} must have an even thread_n4, so that a thread holds both a and b")
    params = {"a_row": K // 4, "a_outer": 0, "a_inner": 0, "a_first": 0, "b_row": C // 2, "b_outer": 0, "b_inner": 0}
    params |= {"b_first": 0, "b_columns": 2 * C, "out_row": C // 4, "out_outer": 0, "out_inner": 0}
    sizes, epilogue, flags = (1, 1, x.size // K, 2 * C, K), Epilogue(bias=bias), {"GEGLU": True}
    options = {"tile": tile, "num_splits": 1, "in_eights": in_eights}
    (call,) = product_calls("common/matmul.wgsl", x, weight, out, sizes, params, epilogue, flags, **options)
    return call
