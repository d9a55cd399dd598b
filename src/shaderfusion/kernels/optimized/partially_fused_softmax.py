"""Softmax of which only the reduction is a dispatch: the normalized N x M matrix is never written."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall, write
from shaderfusion.kernels.common.matmul import attention_values
from shaderfusion.kernels.softmax_rows import softmax_rows_call
from shaderfusion.kernels.tiles import AnyTile
from shaderfusion.tensor import TensorSpec

__all__ = ["partially_fused_softmax"]


def partially_fused_softmax(
    scores: TensorSpec,
    v: TensorSpec,
    out: TensorSpec,
    *,
    num_heads: int,
    causal: bool = False,
    first_query: int = 0,
    tile: AnyTile = None,
    row_lanes: int | None = None,
) -> tuple[KernelCall, ...]:
    """out_h = softmax(scores[b, h]) v_h; scores: (B, heads, n, M rounded up to 4), v: (B, M, heads D), out as q.

    The n rows are of the queries from `first_query` on. Between the two dispatches only (L, S) is stored,
    (B, heads, n, 2) f32. `causal` masks keys j > i. tile and row_lanes are those of the product and of the reduction.
    """
    if len(scores.shape) != 4:
        raise ShapeError(f"partially_fused_softmax: {scores} must be (B, heads, N, M)")
    statistics = TensorSpec(f"{out.name}.statistics", (*scores.shape[:3], 2), "f32")
    reduce_rows = softmax_rows_call(
        "optimized/partially_fused_softmax.wgsl",
        "reduce_rows",
        scores,
        write(statistics),
        num_columns=v.shape[1],
        causal=causal,
        first_query=first_query,
        row_lanes=row_lanes,
    )
    return reduce_rows, *attention_values(
        scores,
        v,
        out,
        num_heads=num_heads,
        statistics=statistics,
        causal=causal,
        first_query=first_query,
        tile=tile,
    )
