"""Softmax over rows as a dispatch of its own: what the partially fused softmax and flash attention replace."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall, write
from shaderfusion.kernels.softmax_rows import softmax_rows_call
from shaderfusion.tensor import TensorSpec

__all__ = ["softmax_unfused"]


def softmax_unfused(
    x: TensorSpec,
    out: TensorSpec,
    *,
    num_columns: int,
    causal: bool = False,
    first_query: int = 0,
    row_lanes: int | None = None,
) -> KernelCall:
    """out_ij = exp(x_ij - max_j x_ij) / sum_j exp(x_ij - max_j x_ij); x, out: (..., N, M).

    Columns from `num_columns` on are padding: not read as numbers, written as 0. `causal` masks j > i too, where the
    first of the N rows is of query `first_query`. `row_lanes` share a row, by default as many as its length asks for.
    """
    if len(x.shape) < 2 or out.shape != x.shape or out.dtype != x.dtype:
        raise ShapeError(f"softmax: {x} and {out} must have one dtype and one shape (..., N, M)")
    source = "baseline/softmax_unfused.wgsl"
    options = {"num_columns": num_columns, "causal": causal, "first_query": first_query, "row_lanes": row_lanes}
    return softmax_rows_call(source, "softmax_unfused", x, write(out), **options)
