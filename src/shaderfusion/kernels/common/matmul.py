"""Matrix products: a linear layer, and the two products of attention, through one tiled kernel."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import Binding, KernelCall, ceil_div, read, read_columns, spread_workgroups, write
from shaderfusion.kernels.tiles import (
    AnyTile,
    Lanes,
    MatrixTile,
    MatrixUnits,
    Tile,
    choose_lane_tile,
    choose_matrix_tile,
    choose_splits,
    choose_tile,
)
from shaderfusion.tensor import TensorSpec

__all__ = [
    "Epilogue",
    "attention_scores",
    "attention_values",
    "image_bias_params",
    "matmul",
    "product_calls",
    "require_multiples_of_4",
    "with_epilogue",
]

_SUM_WORKGROUP_SIZE = 64


@dataclass(frozen=True)
class Epilogue:
    """out = scale * sums + bias + image_bias + residual; None adds nothing."""

    scale: float = 1.0
    bias: TensorSpec | None = None
    """(N,)"""
    image_bias: TensorSpec | None = None
    """(B, N), a row for all pixels of an image, or (1, N), such as the time embedding; it may be a view of columns."""
    residual: TensorSpec | None = None
    """The shape of out; it may be out itself."""


def matmul(
    a: TensorSpec,
    b: TensorSpec,
    out: TensorSpec,
    epilogue: Epilogue | None = None,
    *,
    tile: AnyTile = None,
    num_splits: int | None = None,
) -> tuple[KernelCall, ...]:
    """out = epilogue(a b), a linear layer; a: (..., M, K), b: (K, N), out: (..., M, N)."""
    if len(b.shape) != 2:
        raise ShapeError(f"matmul: {b} must be (K, N)")
    K, N = b.shape
    M = a.size // K
    if a.shape[-1] != K or out.shape != (*a.shape[:-1], N):
        raise ShapeError(f"matmul: {a} times {b} must give {out}")
    require_multiples_of_4("matmul", K=K, N=N)
    params = {
        "a_row": K // 4,
        "a_outer": 0,
        "a_inner": 0,
        "a_first": 0,
        "b_row": N // 4,
        "b_outer": 0,
        "b_inner": 0,
        "b_first": 0,
        "b_columns": N,
    }
    params |= {"out_row": N // 4, "out_outer": 0, "out_inner": 0}
    return product_calls(
        "common/matmul.wgsl",
        a,
        b,
        out,
        (1, 1, M, N, K),
        params,
        epilogue,
        tile=tile,
        num_splits=num_splits,
        in_eights=K % 8 == N % 8 == 0,
    )


def attention_scores(
    q: TensorSpec,
    k: TensorSpec,
    out: TensorSpec,
    *,
    num_heads: int,
    scale: float,
    first_query: int = 0,
    tile: AnyTile = None,
) -> tuple[KernelCall, ...]:
    """out[b, h] = scale q_h k_h^T; q: (B, N, heads D), k: (B, M, heads D), out: (B, heads, n, M rounded up to 4).

    Its n rows are for the queries from `first_query` on, all N or some of them. q and k may be views of columns.
    """
    _require_heads("attention_scores", q, k, num_heads)
    B, N, C = q.shape
    M = k.shape[1]
    D = C // num_heads
    padded = ceil_div(M, 4) * 4
    _require_queries("attention_scores", q, out, first_query)
    num_rows = out.shape[2]
    if k.shape != (B, M, C) or C % num_heads or out.shape != (B, num_heads, num_rows, padded):
        raise ShapeError(f"attention_scores: {q} times {k} with num_heads (={num_heads}) must give {out}")
    require_multiples_of_4("attention_scores", D=D)
    params = _strides("a", q, N, D, first_query) | _strides("b", k, M, D) | {"b_columns": M}
    params |= {"out_row": padded // 4, "out_inner": num_rows * padded // 4}
    params |= {"out_outer": num_heads * num_rows * padded // 4}
    sizes = (B, num_heads, num_rows, padded, D)
    constants = {"TRANSPOSE_B": True}
    # Logits may be large and cancel: f16 would round them by more than softmax forgives.
    kind = {"tile": tile, "f16_sums": False, "strided": True, "in_eights": D % 8 == 0 and _in_eights(q, k)}
    return product_calls("common/matmul.wgsl", q, k, out, sizes, params, Epilogue(scale), constants, **kind)


def attention_values(
    probs: TensorSpec,
    v: TensorSpec,
    out: TensorSpec,
    *,
    num_heads: int,
    statistics: TensorSpec | None = None,
    causal: bool = False,
    first_query: int = 0,
    tile: AnyTile = None,
) -> tuple[KernelCall, ...]:
    """out_h = probs[b, h] v_h; probs: (B, heads, n, M rounded up to 4), v: (B, M, heads D), out: (B, N, heads D).

    The n rows are of the queries from `first_query` on, all N or some of them. With `statistics`, (L, S) as
    (B, heads, n, 2) f32, `probs` holds logits, and out_h = softmax(logits) v_h. v may be a view of columns.
    """
    _require_heads("attention_values", out, v, num_heads)
    B, N, C = out.shape
    M = v.shape[1]
    D = C // num_heads
    padded = ceil_div(M, 4) * 4
    _require_queries("attention_values", out, probs, first_query)
    num_rows = probs.shape[2]
    if v.shape != (B, M, C) or C % num_heads or probs.shape != (B, num_heads, num_rows, padded):
        raise ShapeError(f"attention_values: {probs} times {v} with num_heads (={num_heads}) must give {out}")
    require_multiples_of_4("attention_values", D=D)
    params = {"a_row": padded // 4, "a_first": 0, "a_inner": num_rows * padded // 4}
    params |= {"a_outer": num_heads * num_rows * padded // 4, "first_query": first_query}
    params |= _strides("b", v, M, D) | {"b_columns": D}
    params |= {"out_row": C // 4, "out_outer": N * C // 4, "out_inner": D // 4, "out_first": first_query * C // 4}
    flags = {"SOFTMAX": statistics is not None, "CAUSAL": causal}
    rows = (statistics,) if statistics else ()
    kind = {"more": rows, "tile": tile, "strided": True}
    sizes = (B, num_heads, num_rows, D, M)
    kind |= {"in_eights": D % 8 == 0 and _in_eights(probs, v)}
    return product_calls("common/matmul.wgsl", probs, v, out, sizes, params, constants=flags, **kind)


def product_calls(
    source: str,
    a: TensorSpec,
    b: TensorSpec,
    out: TensorSpec,
    sizes: tuple[int, int, int, int, int],
    params: Mapping[str, int],
    epilogue: Epilogue | None = None,
    constants: Mapping[str, int | bool] | None = None,
    *,
    more: tuple[TensorSpec, ...] = (),
    tile: AnyTile = None,
    num_splits: int | None = None,
    f16_sums: bool = True,
    strided: bool = False,
    in_eights: bool = False,
) -> tuple[KernelCall, ...]:
    """The calls of a kernel built on fragments/product: one, or two where K is split (tiles for GPUs only).

    `sizes` are (outer batches, inner batches, M, N, K); `params` are the kernel's own, the strides of out, and
    out_first, its first vector, if that is not 0; `more` tensors are read from binding 3 on. `f16_sums` allows short
    sums of products in f16 where the tensors are f16. `strided`: a and b may be views of columns, as the params say.
    `in_eights`: rows of a and b begin and end at multiples of 8 values, or with zeros there, as matrix units need it.
    """
    outer, num_inner, M, N, K = sizes
    epilogue = epilogue or Epilogue()
    kernel = PurePosixPath(source).stem
    _require_shape(kernel, "bias", epilogue.bias, (N,))
    _require_shape(kernel, "residual", epilogue.residual, out.shape)
    image_bias = epilogue.image_bias
    if image_bias and (len(image_bias.shape) != 2 or image_bias.shape[1] != N or M % image_bias.shape[0]):
        raise ShapeError(f"{kernel}: image_bias {image_bias} must be (images, {N}), for {M} rows")
    for tensor in (a, b, epilogue.bias, image_bias, epilogue.residual):
        if tensor and tensor.dtype != out.dtype:
            raise ShapeError(f"{kernel}: {tensor} must have the dtype of {out}")
    if num_splits is not None and num_splits < 1:
        raise ShapeError(f"{kernel}: num_splits (={num_splits}) must be at least 1, or None to choose it")
    num_batches = outer * num_inner
    if isinstance(tile, Lanes):
        tile = choose_lane_tile(tile, M)
    if isinstance(tile, MatrixUnits):
        size = (M, N, num_batches, K)
        tile, num_splits = choose_matrix_tile(tile, *size, num_splits) if in_eights else (None, num_splits)
    tile = tile or choose_tile(M, N, num_batches, K, pairs=f16_sums and a.dtype == "f16")
    if isinstance(tile, MatrixTile) and not (in_eights and a.dtype == "f16"):
        raise ShapeError(f"{kernel}: {tile} needs f16, and rows of {a} and {b} in multiples of 8 values")
    split_depth = K
    if isinstance(tile, (Tile, MatrixTile)):
        if num_splits is None:
            num_splits = choose_splits(tile, M, N, num_batches, K)
        split_depth = ceil_div(ceil_div(K, num_splits), tile.k) * tile.k
    num_splits = ceil_div(K, split_depth)
    shared: dict[str, int | float] = {
        "num_rows": M,
        "num_columns": N,
        "num_batches": num_batches,
        "num_inner": num_inner,
        "num_splits": num_splits,
        "scale": float(epilogue.scale),
        "out_first": 0,
        **params,
    }
    shared |= image_bias_params(image_bias, M)
    grid = (ceil_div(N, tile.n), ceil_div(M, tile.m), num_batches * num_splits)
    product = KernelCall(
        source=source,
        entry_point="product",
        dtype=out.dtype,
        bindings=(read_columns if strided else read)(a, b) + read(*more),
        constants={**tile.constants, **(constants or {})},
        params={**shared, "depth": K, "split_depth": split_depth},
        workgroups=grid,
    )
    if num_splits == 1:
        return (with_epilogue(product, out, epilogue),)
    parts = TensorSpec(f"{out.name}.parts", (num_splits, num_batches, M, N), "f32")
    return (
        _extend(product, write(parts), {"SPLIT": True, "OUT_BINDING": len(product.bindings) + 1}),
        with_epilogue(
            KernelCall(
                source=source,
                entry_point="sum_splits",
                dtype=out.dtype,
                bindings=read(parts),
                constants={"SUM_SPLITS": True, "SUM_WORKGROUP_SIZE": _SUM_WORKGROUP_SIZE},
                params=shared,
                workgroups=spread_workgroups(ceil_div(num_batches * M * N // 4, _SUM_WORKGROUP_SIZE)),
            ),
            out,
            epilogue,
        ),
    )


def image_bias_params(image_bias: TensorSpec | None, num_rows: int) -> dict[str, int]:
    """Where the epilogue finds the image_bias of each of so many rows of out, in vectors of 4."""
    if image_bias is None:
        return {}
    strides = {"image_bias_row": image_bias.row_stride // 4, "image_bias_first": image_bias.first_column // 4}
    return {"rows_per_image": num_rows // image_bias.shape[0], **strides}


def with_epilogue(call: KernelCall, out: TensorSpec, epilogue: Epilogue) -> KernelCall:
    """Binds out and what the epilogue adds, each optional tensor with its flag and its binding's number.

    Where the residual is out, of which each value is read where it is written, out is bound alone.
    """
    residual, place = epilogue.residual, {"OUT_BINDING": len(call.bindings) + 1}
    if residual and residual.storage is out.storage:
        if residual.offset_bytes != out.offset_bytes:
            raise ShapeError(f"{call.name}: residual {residual} must be the same part of {out.storage} as {out}")
        bindings = (Binding(out, "read_write"),)
        constants: dict[str, int | bool] = {**place, "RESIDUAL": True, "IN_PLACE": True}
        residual = None
    else:
        bindings, constants = write(out), {**place}
    added = {"BIAS": epilogue.bias, "IMAGE_BIAS": epilogue.image_bias, "RESIDUAL": residual}
    for flag, tensor in added.items():
        if tensor:
            bindings += read_columns(tensor) if flag == "IMAGE_BIAS" else read(tensor)
            constants |= {flag: True, f"{flag}_BINDING": len(call.bindings) + len(bindings)}
    return _extend(call, bindings, constants)


def _extend(call: KernelCall, bindings: tuple[Binding, ...], constants: dict[str, int | bool]) -> KernelCall:
    return replace(call, bindings=call.bindings + bindings, constants={**call.constants, **constants})


def _strides(operand: str, tensor: TensorSpec, num_rows: int, head_dim: int, first_row: int = 0) -> dict[str, int]:
    """Params of an operand (B, num_rows, heads D) of attention, by images and heads, in vectors of 4."""
    row = tensor.row_stride // 4
    first = first_row * row + tensor.first_column // 4
    names = (f"{operand}_row", f"{operand}_outer", f"{operand}_inner", f"{operand}_first")
    return dict(zip(names, (row, num_rows * row, head_dim // 4, first), strict=True))


def require_multiples_of_4(kernel: str, **sizes: int) -> None:
    """ShapeError unless the kernels' loads of four values fit."""
    for name, size in sizes.items():
        if size % 4:
            raise ShapeError(f"{kernel}: {name} (={size}) must be a multiple of 4; pad the tensor with zeros")


def _require_heads(kernel: str, a: TensorSpec, b: TensorSpec, num_heads: int) -> None:
    if len(a.shape) != 3 or len(b.shape) != 3 or num_heads < 1:
        raise ShapeError(f"{kernel}: {a} and {b} must be (B, tokens, heads D), num_heads (={num_heads}) at least 1")


def _in_eights(*tensors: TensorSpec) -> bool:
    """Whether all rows begin at multiples of 8 values."""
    return all(tensor.row_stride % 8 == tensor.first_column % 8 == 0 for tensor in tensors)


def _require_queries(kernel: str, queries: TensorSpec, rows: TensorSpec, first_query: int) -> None:
    """ShapeError unless rows (B, heads, n, M) are of queries (B, N, heads D) from the first one on."""
    if len(rows.shape) != 4 or not 0 <= first_query <= first_query + rows.shape[2] <= queries.shape[1]:
        raise ShapeError(f"{kernel}: {rows} must be (B, heads, n, M) for queries of {queries} from {first_query} on")


def _require_shape(kernel: str, name: str, tensor: TensorSpec | None, shape: tuple[int, ...]) -> None:
    if tensor and tensor.shape != shape:
        raise ShapeError(f"{kernel}: {name} {tensor} must have shape {shape}")
