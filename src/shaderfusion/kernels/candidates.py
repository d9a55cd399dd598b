"""The few ways to do an operation that may be the fastest on some device: what `shaderfusion tune` tries.

All are valid for the device's capabilities. The static rules of kernels/select need not be among them.
"""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import ceil_div
from shaderfusion.kernels.capabilities import Capabilities
from shaderfusion.kernels.optimized.flash_attention import MAX_HEAD_DIM, flash_tiles, matrix_flash_tiles
from shaderfusion.kernels.tiles import (
    EMULATED_TILE,
    Lanes,
    LaneTile,
    MatrixTile,
    MatrixUnits,
    Tile,
    choose_splits,
    tile_of,
)
from shaderfusion.kernels.tuning import (
    Attention,
    Convolution,
    Flash,
    GatedEpilogue,
    GatedLinear,
    Linear,
    Scores,
    Tiling,
    Winograd,
)
from shaderfusion.tensor import DType, dtype_size_bytes

__all__ = [
    "attention_candidates",
    "convolution_candidates",
    "flash_fits",
    "gated_linear_candidates",
    "linear_candidates",
    "winograd_fits",
]

_TILE_SIZES = ((32, 32, 1), (32, 64, 1), (64, 32, 1), (64, 64, 2), (64, 128, 2), (128, 64, 2))
"""m, n and thread_n4. The largest takes 256 threads and 12.2 KiB, which every device grants."""
_MATRIX_TILE_SIZES = (
    (128, 128, 32, 2, 2),
    (128, 64, 32, 2, 2),
    (64, 128, 32, 2, 2),
    (64, 64, 32, 2, 2),
    (32, 64, 64, 1, 2),
    (32, 32, 64, 1, 2),
)
"""m, n, k, subgroups_m and subgroups_n."""
_LANE_ROWS = (4, 8, 16, 32)
_LANE_COLUMNS = (96, 64, 32)
_MIN_WINOGRAD_CHANNELS = 32
_MIN_WINOGRAD_TILES = 8
"""Of 4x4."""
_MAX_SCORES_BYTES = 64 << 20
"""Attention that keeps larger scores is not tried, as its memory would cost more than its time may gain."""


def linear_candidates(operation: Linear, capabilities: Capabilities) -> list[Tiling]:
    """Tiles, and numbers of splits."""
    o = operation
    in_eights = _in_eights(o.columns, o.depth)
    return _tilings(o.dtype, o.rows, o.columns, o.depth, capabilities, in_eights=in_eights)


def gated_linear_candidates(
    operation: GatedLinear, capabilities: Capabilities, *, fused: bool
) -> list[Tiling | GatedEpilogue]:
    """Tiles, and numbers of splits, with GEGLU as the epilogue where `fused` allows it, and after it."""
    o = operation
    apart = linear_candidates(o, capabilities)
    if not fused or capabilities.exchanges_lanes:
        return [*apart]
    tiles = _tiles(o.dtype, o.rows, o.columns, capabilities, in_eights=_in_eights(o.columns // 2, o.depth))
    gated = [t for t in tiles if isinstance(t, MatrixTile) or (isinstance(t, Tile) and t.thread_n4 % 2 == 0)]
    return [*apart, *map(GatedEpilogue, gated)]


def convolution_candidates(
    operation: Convolution, capabilities: Capabilities, *, winograd: bool
) -> list[Tiling | Winograd]:
    """The direct convolution's tiles and splits, and where `winograd` allows it F(2x2) and F(4x4) with some tiles."""
    C_in, (B, H, W, C_out) = operation.x_shape[-1], operation.out_shape
    dtype, in_eights = operation.dtype, _in_eights(C_in, C_out)
    found: list[Tiling | Winograd] = [*_tilings(dtype, B * H * W, C_out, 9 * C_in, capabilities, in_eights=in_eights)]
    enough = min(C_in, C_out) >= _MIN_WINOGRAD_CHANNELS and operation.num_tiles(4) >= _MIN_WINOGRAD_TILES
    if winograd and operation.stride == 1 and enough:
        for m in (2, 4):
            if winograd_fits(operation, m, capabilities):
                kind = {"in_eights": in_eights, "f16_sums": False}
                tiles = _tiles(dtype, operation.num_tiles(m), C_out, capabilities, **kind)
                found += [Winograd(m), *(Winograd(m, tile) for tile in tiles)]
    return found


def winograd_fits(operation: Convolution, m: int, capabilities: Capabilities) -> bool:
    """Whether a row of tiles, and a vector of filters for each input channel, can be bound: the least it holds."""
    C_in, (_, _, W, C_out) = operation.x_shape[-1], operation.out_shape
    most = max(ceil_div(W, m) * max(C_in, C_out), 4 * C_in)
    return (m + 2) ** 2 * most * dtype_size_bytes(operation.dtype) <= capabilities.max_binding_bytes


def attention_candidates(operation: Attention, capabilities: Capabilities, *, flash: bool) -> list[Flash | Scores]:
    """FlashAttention's tiles where `flash` allows it, and scores of moderate size with some tiles."""
    o = operation
    found: list[Flash | Scores] = []
    if flash and flash_fits(o.head_dim, capabilities):
        units = capabilities.matrix_units_of(o.dtype)
        on_matrices = matrix_flash_tiles(o.head_dim, units, capabilities) if units else []
        found += [Flash(tile) for tile in on_matrices or flash_tiles(o.head_dim, o.dtype, capabilities)]
    columns = ceil_div(o.keys, 4) * 4
    if o.batch * o.heads * o.queries * columns * dtype_size_bytes(o.dtype) <= _MAX_SCORES_BYTES:
        found.append(Scores())
        kind = {"in_eights": _in_eights(o.head_dim), "f16_sums": False}
        found += [Scores(scores=tile) for tile in _tiles(o.dtype, o.queries, columns, capabilities, **kind)]
        kind = {"in_eights": _in_eights(o.head_dim, columns)}
        found += [Scores(values=tile) for tile in _tiles(o.dtype, o.queries, o.head_dim, capabilities, **kind)]
    return found


def flash_fits(head_dim: int, capabilities: Capabilities) -> bool:
    """Whether FlashAttention's kernel takes heads of that size and may be fast: not by the lanes of a CPU."""
    return not capabilities.exchanges_lanes and head_dim % 8 == 0 and head_dim <= MAX_HEAD_DIM


def _in_eights(*sizes: int) -> bool:
    """Whether rows of these sizes are whole vectors of 8 values, as matrix units need them."""
    return all(size % 8 == 0 for size in sizes)


def _tilings(
    dtype: DType, rows: int, columns: int, depth: int, capabilities: Capabilities, *, in_eights: bool
) -> list[Tiling]:
    """Each tile with a sum over K that is whole, and in as many parts as seem useful, or half as many."""
    found: list[Tiling] = []
    for tile in _tiles(dtype, rows, columns, capabilities, in_eights=in_eights):
        if isinstance(tile, LaneTile):
            found.append(Tiling(tile))
            continue
        most = choose_splits(tile, rows, columns, 1, depth)
        found += [Tiling(tile, splits) for splits in sorted({1, max(1, most // 2), most})]
    return found


def _tiles(
    dtype: DType, rows: int, columns: int, capabilities: Capabilities, *, in_eights: bool, f16_sums: bool = True
) -> list[Tile] | list[LaneTile] | list[MatrixTile]:
    """Tiles of a product, but for those of which more than half would be beyond its edges.

    Where matrix units can take it, they do.
    """
    products = capabilities.products_of(dtype)
    if isinstance(products, Lanes) and products.are_four:
        return [LaneTile(m, n, lanes=4, unrolled=True) for m in (8, 16) for n in (16, 32)]
    if isinstance(products, Lanes):
        heights = [m for m in _LANE_ROWS if m < 2 * rows or m == _LANE_ROWS[0]]
        widest = min(_LANE_COLUMNS, key=lambda n: ceil_div(columns, n) * n)  # of those that waste the fewest columns
        return [LaneTile(m, n, products.int64_pairs) for m in heights for n in sorted({32, widest})]
    if isinstance(products, MatrixUnits) and in_eights:
        tiles = _matrix_tiles(products, capabilities)
        return [t for t in tiles if (t.m < 2 * rows or t.m <= 32) and (t.n < 2 * columns or t.n <= 32)]
    return [
        tile_of(m, n, pairs=f16_sums and dtype == "f16", thread_n4=thread_n4)
        for m, n, thread_n4 in _TILE_SIZES
        if (m < 2 * rows or m == 32) and (n < 2 * columns or n == 32)
    ]


def _matrix_tiles(units: MatrixUnits, capabilities: Capabilities) -> list[MatrixTile]:
    """Those that divide evenly among subgroups and threads, and that a workgroup can hold."""

    def fits(tile: MatrixTile) -> bool:
        shared_bytes = max(tile.shared_bytes(), tile.shared_bytes(transposed=True))
        fits = tile.num_threads <= capabilities.max_workgroup_size and shared_bytes <= capabilities.max_workgroup_bytes
        return fits and _is_even(tile)

    sizes = [EMULATED_TILE] if units.emulated else _MATRIX_TILE_SIZES
    return [tile for tile in (MatrixTile(*size, units) for size in sizes) if fits(tile)]


def _is_even(tile: MatrixTile) -> bool:
    try:
        return bool(tile.constants)
    except ShapeError:
        return False
