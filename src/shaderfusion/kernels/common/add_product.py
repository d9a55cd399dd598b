"""out += scale b, or scale a b: what an adapter adds to a weight, whose matrices may be smaller than it."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import Binding, KernelCall, ceil_div, read
from shaderfusion.tensor import TensorSpec

__all__ = ["add_product"]

_COLUMN_LANES, _ROW_LANES = 32, 4


def add_product(
    out: TensorSpec,
    b: TensorSpec,
    a: TensorSpec | None = None,
    *,
    scale: float,
    first_row: int = 0,
    num_rows: int | None = None,
) -> KernelCall:
    """out += scale a b, element by element; out: (M, N), or of a matrix with num_rows those from first_row on.

    A matrix of m rows and C T columns is (m, T, C), with column c T + t at [t, c]. `a` is stretched to the size of the
    whole, each element to a block, and b is repeated: Kronecker's product where a block is as large as b. Without `a` b
    is as large as out.
    """
    M, N = out.shape
    num_rows = num_rows or M
    (b_rows, b_columns), (a_rows, a_columns) = _size(b), _size(a) if a else (num_rows, N)
    is_whole = num_rows % a_rows == num_rows % b_rows == N % a_columns == N % b_columns == 0
    if not is_whole or (a is None and (b_rows, b_columns) != (M, N)):
        raise ShapeError(f"add_product: {a or 1} and {b} must fill {num_rows} rows of {out}")
    if not 0 <= first_row <= num_rows - M:
        raise ShapeError(f"add_product: rows of {out} from {first_row} on must be some of {num_rows}")
    constants: dict[str, int | bool] = {"COLUMN_LANES": _COLUMN_LANES, "ROW_LANES": _ROW_LANES, "B_TAPS": b.shape[1]}
    params: dict[str, int | float] = {"rows": M, "columns": N, "b_stride": b.shape[2], "scale": float(scale)}
    if a:
        constants |= {"STRETCHED": True, "A_TAPS": a.shape[1]}
        params |= {"first_row": first_row, "a_stride": a.shape[2], "b_rows": b_rows, "b_columns": b_columns}
        params |= {"block_rows": num_rows // a_rows, "block_columns": N // a_columns}
    return KernelCall(
        source="common/add_product.wgsl",
        entry_point="add_product",
        dtype=out.dtype,
        bindings=(Binding(out, "read_write"), *read(b), *(read(a) if a else ())),
        constants=constants,
        params=params,
        workgroups=(ceil_div(N, _COLUMN_LANES), ceil_div(M, _ROW_LANES), 1),
    )


def _size(matrix: TensorSpec) -> tuple[int, int]:
    """Its rows, and its columns without padding."""
    rows, taps, _ = matrix.shape
    return rows, taps * matrix.channels
