"""Calls of the kernels that reduce rows of logits, as fragments/softmax_rows does."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import Binding, KernelCall, ceil_div, read, spread_workgroups
from shaderfusion.tensor import TensorSpec

__all__ = ["softmax_rows_call"]

_SHORT_ROW = 512
"""Up to this many columns, a workgroup takes several rows."""


def softmax_rows_call(
    source: str,
    entry_point: str,
    x: TensorSpec,
    out: tuple[Binding, ...],
    *,
    num_columns: int,
    causal: bool,
    first_query: int,
    row_lanes: int | None,
) -> KernelCall:
    """A call of a kernel built on fragments/softmax_rows, which reads the rows of x (..., N, M)."""
    N, M = x.shape[-2:]
    if not 1 <= num_columns <= M:
        raise ShapeError(f"softmax: num_columns (={num_columns}) must be from 1 to {M}, the columns of {x}")
    if row_lanes is None:
        row_lanes = 32 if M <= _SHORT_ROW else 256
    workgroup_size = max(128, row_lanes)
    rows = x.size // M
    return KernelCall(
        source=source,
        entry_point=entry_point,
        dtype=x.dtype,
        bindings=read(x) + out,
        constants={"WORKGROUP_SIZE": workgroup_size, "ROW_LANES": row_lanes, "VEC4": M % 4 == 0, "CAUSAL": causal},
        params={"rows": rows, "queries": N, "row_stride": M, "num_columns": num_columns, "first_query": first_query},
        workgroups=spread_workgroups(ceil_div(rows, workgroup_size // row_lanes)),
    )
