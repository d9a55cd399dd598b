"""Tiles of matrix products: how a workgroup and its threads divide one, and which sizes suit a product."""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import ceil_div

__all__ = [
    "EMULATED_TILE",
    "MATRIX_WORKGROUP_BYTES",
    "AnyTile",
    "LaneTile",
    "Lanes",
    "MatrixTile",
    "MatrixUnits",
    "Tile",
    "choose_lane_tile",
    "choose_matrix_tile",
    "choose_splits",
    "choose_tile",
    "tile_of",
]

_ENOUGH_WORKGROUPS = 350
"""So many tiles occupy a large GPU: about 3 for each of 100 to 130 multiprocessors."""


@dataclass(frozen=True)
class Tile:
    """Sizes of fragments/tile_matmul: per workgroup m x n sums, k at a time; per thread thread_m x 4 thread_n4."""

    m: int = 128
    n: int = 64
    k: int = 16
    thread_m: int = 8
    thread_n4: int = 2
    pairs: bool = False
    """Sum the products of k / 2 values in the tensors' dtype, even and odd ones apart, before they are added in f32."""

    @property
    def constants(self) -> dict[str, int | bool]:
        """The kernel's constants; ShapeError where the tile does not divide evenly among threads."""
        threads = (self.m // self.thread_m) * (self.n // 4 // self.thread_n4)
        if self.m % (2 * self.thread_m) or self.n % (8 * self.thread_n4) or self.k % 4:
            raise ShapeError(f"{self}: m, n and k must be multiples of 2 thread_m, 8 thread_n4 and 4")
        if threads % (self.k // 4) or (self.m * self.k // 4) % threads:
            raise ShapeError(f"{self}: its {threads} threads must be a multiple of k / 4 and divide m k / 4")
        sizes = {"TILE_M": self.m, "TILE_N": self.n, "TILE_K": self.k}
        return {**sizes, "THREAD_M": self.thread_m, "THREAD_N4": self.thread_n4, "PAIRS": self.pairs}


@dataclass(frozen=True)
class LaneTile:
    """Sizes of fragments/lane_matmul: per workgroup, which is one subgroup of a CPU, m rows x n columns.

    llvmpipe unrolls loops of up to 32 turns, which keeps the sums of m rows in registers or on a lane's stack.
    """

    m: int = 32
    n: int = 32
    int64_pairs: bool = False
    """Load two f32 as one u64 (fragments/pair)."""
    lanes: int = 8
    """Of a subgroup, or as many of them as work: 8 is llvmpipe's with 256-bit vectors."""
    unrolled: bool = False
    """Loops are repeated in the shader's text, for SwiftShader, whose subgroups all have so many lanes."""

    @property
    def constants(self) -> dict[str, int | bool]:
        """The kernel's constants; ShapeError where the columns are not vectors of 4 for each lane."""
        if self.m < 1 or self.n < 1 or self.n % (4 * self.lanes):
            raise ShapeError(f"{self}: m must be at least 1, and n a multiple of {4 * self.lanes}")
        sizes = {"NUM_LANES": self.lanes, "LANE_TILE_M": self.m, "LANE_VECTORS": self.n // (4 * self.lanes)}
        return {"LANES": True, **sizes, "INT64_PAIRS": self.int64_pairs, "UNROLLED": self.unrolled}


@dataclass(frozen=True)
class Lanes:
    """The lanes of a CPU's subgroups, which exchange values: a product of theirs has a LaneTile by its size."""

    int64_pairs: bool = False
    """As in LaneTile."""
    are_four: bool = False
    """All subgroups have 4, those of SwiftShader."""


@dataclass(frozen=True)
class MatrixUnits:
    """What multiplies matrices of f16 in a device, with sums in f32: m x n sums over k by the lanes of one subgroup."""

    m: int = 16
    n: int = 16
    k: int = 16
    subgroup_size: int = 32
    sized: bool = False
    """The device has subgroups of several sizes, so that a shader asks for this one."""
    emulated: bool = False
    """By the lanes themselves, slowly: for tests on devices without such units."""

    @property
    def constants(self) -> dict[str, int | bool]:
        """The constants of fragments/matrix_units."""
        sizes = {"MATRIX_M": self.m, "MATRIX_N": self.n, "MATRIX_K": self.k, "SUBGROUP_SIZE": self.subgroup_size}
        return {"MATRIX_UNITS": True, "SIZED_SUBGROUPS": self.sized, "EMULATED": self.emulated, **sizes}


@dataclass(frozen=True)
class MatrixTile:
    """Sizes of fragments/matrix_matmul: m x n sums, k at a time, by subgroups_m x subgroups_n subgroups a workgroup."""

    m: int
    n: int
    k: int
    subgroups_m: int
    subgroups_n: int
    units: MatrixUnits

    @property
    def num_threads(self) -> int:
        """Threads of a workgroup."""
        return self.subgroups_m * self.subgroups_n * self.units.subgroup_size

    def shared_bytes(self, *, transposed: bool = False) -> int:
        """Workgroup memory that the kernel declares, where b is (K, N), or (N, K) if `transposed`."""
        b_rows, b_row8 = (self.n, self.k // 8) if transposed else (self.k, self.n // 8)
        operands = self.m * (self.k // 8 + 1) + b_rows * (b_row8 + 1)
        return 16 * max(operands, self.subgroups_m * self.units.m * (self.n // 4 + 1))

    @property
    def constants(self) -> dict[str, int | bool]:
        """The kernel's constants; ShapeError where the tile does not divide evenly among subgroups and threads."""
        units, threads = self.units, self.num_threads
        if self.m % (self.subgroups_m * units.m) or self.n % (self.subgroups_n * units.n) or self.k % units.k:
            raise ShapeError(f"{self}: m, n and k must be multiples of what its subgroups multiply at once")
        if self.k % 8 or self.n % 16 or (self.m * self.k // 8) % threads or (self.k * self.n // 8) % threads:
            raise ShapeError(f"{self}: its {threads} threads must divide m k / 8 and k n / 8, k 8 and n 16 values")
        if threads % (self.k // 8):
            raise ShapeError(f"{self}: its {threads} threads must be a multiple of k / 8")
        sizes = {"TILE_M": self.m, "TILE_N": self.n, "TILE_K": self.k}
        sizes |= {"SUBGROUPS_M": self.subgroups_m, "SUBGROUPS_N": self.subgroups_n}
        sizes |= {
            "FRAGMENTS_M": self.m // self.subgroups_m // units.m,
            "FRAGMENTS_N": self.n // self.subgroups_n // units.n,
        }
        return {**sizes, **units.constants}


AnyTile = Tile | LaneTile | MatrixTile | Lanes | MatrixUnits | None
"""What a product is told of its tile: which, or by its size and for which kind of device."""


def choose_lane_tile(lanes: Lanes, num_rows: int) -> LaneTile:
    """The tile for a product of so many rows. Wider ones would be faster, but take long to compile."""
    if lanes.are_four:
        return LaneTile(8, 32, lanes=4, unrolled=True)
    return LaneTile(next((m for m in (4, 8, 16) if num_rows <= m), 32), int64_pairs=lanes.int64_pairs)


def tile_of(m: int, n: int, *, pairs: bool, thread_n4: int = 2) -> Tile:
    """A tile of m x n sums, with the depth and the rows of a thread that are fastest for its kind of sums."""
    return Tile(m, n, 32 if pairs else 16, thread_m=4, thread_n4=thread_n4, pairs=pairs)


def choose_tile(num_rows: int, num_columns: int, num_batches: int, depth: int, *, pairs: bool) -> Tile:
    """The tile for a product of that size: the largest that still occupies a large GPU.

    Fitted to sweeps of SD 1.4's shapes (docs/tuning.md). Deep sums occupy a GPU by splits (`choose_splits`).
    """
    small = tile_of(32, 64, thread_n4=1, pairs=pairs)
    medium = tile_of(64, 64, pairs=pairs)
    wide = tile_of(64, 128, pairs=pairs)
    depth_to_split = depth if num_batches == 1 else 0

    def occupies(tile: Tile) -> bool:
        return _num_workgroups(tile, num_rows, num_columns, num_batches) >= _ENOUGH_WORKGROUPS

    if num_columns <= 32:
        return tile_of(64, 32, thread_n4=1, pairs=pairs)
    if num_rows > 64 and num_columns % wide.n == 0 and (occupies(wide) or depth_to_split > 5120):
        return wide
    if num_rows <= 64 or (num_rows <= 256 and num_batches == 1):
        return small
    return medium if occupies(medium) or depth_to_split >= 1280 else small


def choose_splits(tile: Tile | MatrixTile, num_rows: int, num_columns: int, num_batches: int, depth: int) -> int:
    """How many workgroups share one tile's sum over K, so that small products of great depth still fill a GPU.

    Their sums, of at most 640 tiles of 64 x 128, take at most 21 MB, which every device can bind.
    """
    workgroups = _num_workgroups(tile, num_rows, num_columns, num_batches)
    return 1 if workgroups >= _ENOUGH_WORKGROUPS else max(1, min(640 // workgroups, depth // 128, 12))


class _Estimate(NamedTuple):
    """A tile of the matrix units, and what it takes on a large GPU, fitted to sweeps (docs/tuning.md)."""

    tile: tuple[int, int, int, int, int]
    """The sizes of a MatrixTile."""
    workgroups: int
    """So many run at once."""
    ns: float
    """Of each value of k, while they do."""

    def us(self, num_rows: int, num_columns: int, num_batches: int, depth: int, num_splits: int) -> float:
        """Microseconds of a product, sums of splits included; infinitely many where splits pay no more."""
        m, n, k, *_ = self.tile
        workgroups = num_batches * ceil_div(num_rows, m) * ceil_div(num_columns, n) * num_splits
        if num_splits > 1 and workgroups > _ENOUGH_TO_SPLIT:
            return inf
        split_depth = ceil_div(ceil_div(depth, num_splits), k) * k
        whole, rest = divmod(workgroups, self.workgroups)
        rounds = whole + (max(0.5, rest / self.workgroups) if rest else 0)  # half as many are less than twice as fast
        us = _DISPATCH_US + rounds * split_depth * self.ns / 1000
        if num_splits > 1:
            us += _SUM_US + num_batches * num_rows * num_columns * num_splits / _SUMS_PER_US
        return us


_ESTIMATES = (
    _Estimate((128, 128, 32, 2, 2), 560, 37.5),
    _Estimate((128, 64, 32, 2, 2), 760, 30.5),
    _Estimate((32, 64, 64, 1, 2), 640, 16.0),
)
MATRIX_WORKGROUP_BYTES = 32768
"""Workgroup memory that holds any of those tiles."""
EMULATED_TILE = (16, 16, 16, 2, 1)
_ENOUGH_TO_SPLIT = 264
"""Workgroups of long sums, two for each multiprocessor: with more some have to wait for all of those."""
_SPLITS = (1, 2, 3, 4, 6, 8, 12)
_DISPATCH_US = 3.0
_SUM_US = 5.6
_SUMS_PER_US = 673_000
"""Values in f32 that a product writes and the sum of splits reads again."""


def choose_matrix_tile(
    units: MatrixUnits,
    num_rows: int,
    num_columns: int,
    num_batches: int,
    depth: int,
    num_splits: int | None = None,
) -> tuple[MatrixTile, int]:
    """The tile for a product of that size by matrix units, and the splits of K: those estimated to be fastest.

    With `num_splits` it is that.
    """
    if units.emulated:
        return MatrixTile(*EMULATED_TILE, units), num_splits or 1
    size = (num_rows, num_columns, num_batches, depth)
    splits = [num_splits] if num_splits else [s for s in _SPLITS if s == 1 or s * 128 <= depth]
    _, sizes, best = min((entry.us(*size, s), entry.tile, s) for entry in _ESTIMATES for s in splits)
    return MatrixTile(*sizes, units), best


def _num_workgroups(tile: Tile | MatrixTile, num_rows: int, num_columns: int, num_batches: int) -> int:
    return num_batches * ceil_div(num_rows, tile.m) * ceil_div(num_columns, tile.n)
