"""Exact attention in one dispatch, without a tensor of scores: FlashAttention."""

import math
from dataclasses import dataclass

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall, ceil_div, read_columns, write
from shaderfusion.kernels.capabilities import Capabilities
from shaderfusion.kernels.tiles import MatrixUnits
from shaderfusion.tensor import DType, TensorSpec, dtype_size_bytes

__all__ = [
    "MAX_HEAD_DIM",
    "FlashTile",
    "MatrixFlashTile",
    "choose_flash_tile",
    "choose_matrix_flash_tile",
    "flash_attention",
    "flash_tiles",
    "matrix_flash_tiles",
]

MAX_HEAD_DIM = 160

_ENOUGH_WORKGROUP_BYTES = 32768
"""A tile takes no more workgroup memory, even where there is more, so that a GPU can hold several workgroups."""

_MOST_REGISTERS = 220
"""Of a lane, of the 255 that GPUs with matrix units grant."""


@dataclass(frozen=True)
class FlashTile:
    """Sizes of the kernel: a workgroup takes `queries` rows, `keys` at a time.

    A thread takes thread_queries x thread_keys of their scores, and of thread_queries rows of the output every
    (keys / thread_keys)-th channel. Registers hold these sums, so that their number decides the speed.
    """

    queries: int = 64
    keys: int = 32
    thread_queries: int = 8
    thread_keys: int = 4
    widened: str = "qk"
    """Which of the operands q and k workgroup memory holds in f32, whatever the dtype."""
    interleaved: bool = True
    """The 32 threads of a subgroup in blocks of 2 x 2, instead of row by row."""

    vector = 4
    """Values that it loads at once."""

    @property
    def num_threads(self) -> int:
        """Threads of a workgroup."""
        return (self.queries // self.thread_queries) * (self.keys // self.thread_keys)

    def shared_bytes(self, head_dim: int, dtype: DType) -> int:
        """Workgroup memory that the kernel declares."""
        sizes = {name: 4 if name in self.widened else dtype_size_bytes(dtype) for name in "qkvp"}
        rows = 4 * self.queries * (self.keys // self.thread_keys)
        q, k = (head_dim * (count + 1) * sizes[name] for name, count in (("q", self.queries), ("k", self.keys)))
        return q + k + self.keys * head_dim * sizes["v"] + self.keys * (self.queries + 1) * sizes["p"] + rows

    def constants(self, head_dim: int, dtype: DType) -> dict[str, int | bool]:
        """The kernel's constants; ShapeError where the tile does not divide evenly among threads."""
        threads_k = self.keys // self.thread_keys
        if self.queries % self.thread_queries or self.keys % self.thread_keys or self.thread_keys % 4 or threads_k % 4:
            raise ShapeError(
                f"{self}: queries must be a multiple of thread_queries, keys of thread_keys, and thread_keys and "
                "keys / thread_keys of 4"
            )
        if head_dim % threads_k:
            raise ShapeError(f"{self}: keys / thread_keys (={threads_k}) must divide the head dim (={head_dim})")
        if self.interleaved and self.queries // self.thread_queries % 2:
            raise ShapeError(f"{self}: interleaved threads need an even queries / thread_queries")
        if set(self.widened) - set("qk"):
            raise ShapeError(f"{self}: widened must name some of q and k")
        sizes = {"QUERIES": self.queries, "KEYS": self.keys, "D": head_dim}
        threads = {"THREAD_QUERIES": self.thread_queries, "THREAD_KEYS": self.thread_keys}
        wide = {f"WIDE_{name.upper()}": name in self.widened and dtype != "f32" for name in "qk"}
        return {**sizes, **threads, **wide, "INTERLEAVED": self.interleaved}


@dataclass(frozen=True)
class MatrixFlashTile:
    """Sizes of the kernel on matrix units, for f16: a workgroup takes `queries` rows, a part by each of its subgroups.

    It takes `keys` keys at a time. A lane holds a part of one row of their scores, 8 or more.
    """

    queries: int
    keys: int
    subgroups: int
    units: MatrixUnits

    vector = 8
    """Values that it loads at once."""

    @property
    def rows(self) -> int:
        """Of the queries, by a subgroup."""
        return self.queries // self.subgroups

    @property
    def num_threads(self) -> int:
        """Threads of a workgroup."""
        return self.subgroups * self.units.subgroup_size

    def shared_bytes(self, head_dim: int, dtype: DType) -> int:
        """Workgroup memory that the kernel declares."""
        stride = self._padded(head_dim) // 8 | 1
        tile = 2 * self.keys * stride + self.queries * (self.keys // 4 + 1 + (self.keys // 8 | 1))
        return 16 * max(tile, self.queries * stride) + 16

    def num_registers(self, head_dim: int) -> int:
        """32-bit registers of a lane for what it holds at once: q, o, scores, and loads of keys and values."""
        values = self.rows * (head_dim // 2 + head_dim + self.keys)
        loads = ceil_div(self.keys * head_dim // self.vector, self.num_threads)
        return values // self.units.subgroup_size + 2 * 4 * loads

    def constants(self, head_dim: int, dtype: DType) -> dict[str, int | bool]:
        """The kernel's constants; ShapeError where the tile does not divide evenly among subgroups and lanes."""
        if dtype != "f16":
            raise ShapeError(f"{self}: its matrices are of f16, not {dtype}")
        units = self.units
        if self.queries % (self.subgroups * units.m) or self.keys % max(units.n, units.k):
            raise ShapeError(f"{self}: its subgroups must divide queries into matrices, and keys be whole matrices")
        if units.subgroup_size % self.rows or self.keys * self.rows % (8 * units.subgroup_size):
            raise ShapeError(f"{self}: a subgroup's lanes must share its {self.rows} rows, each 8 keys of one or more")
        padded = self._padded(head_dim)
        return {
            **units.constants,
            "QUERIES": self.queries,
            "KEYS": self.keys,
            "D": head_dim,
            "SUBGROUPS": self.subgroups,
            # How many matrices, and groups of them.
            "ROW_MATRICES": self.rows // units.m,
            "KEY_MATRICES": self.keys // units.n,
            "KEY_STEPS": self.keys // units.k,
            "D_MATRICES": padded // units.n,
            "D_STEPS": padded // units.k,
            "D_BLOCKS": ceil_div(padded, self.keys),
        }

    def _padded(self, head_dim: int) -> int:
        """Channels of a head in whole matrices, of q and k as of v."""
        width = max(self.units.n, self.units.k)
        return ceil_div(head_dim, width) * width


def flash_tiles(head_dim: int, dtype: DType, capabilities: Capabilities) -> list[FlashTile]:
    """Tiles that fit a workgroup: those of many queries first, then of many keys, then with operands in f32.

    A workgroup has 64 threads or more where a tile allows it, a thread at most 64 sums of the output and 4 rows: more
    do not fit its registers.
    """
    max_bytes = min(capabilities.max_workgroup_bytes, _ENOUGH_WORKGROUP_BYTES)
    tiles: list[FlashTile] = []
    for queries, threads_k in ((64, 8), (32, 8), (16, 8), (16, 4), (8, 4)):
        most = max(1, min(4, queries * threads_k // 64, 64 * threads_k // head_dim))
        thread_queries = 1 << (most.bit_length() - 1)
        tiles += [FlashTile(queries, 4 * threads_k, thread_queries, 4, widened) for widened in ("qk", "k", "")]
    return [
        tile
        for tile in tiles
        if tile.shared_bytes(head_dim, dtype) <= max_bytes and tile.num_threads <= capabilities.max_workgroup_size
    ]


def choose_flash_tile(head_dim: int, dtype: DType, capabilities: Capabilities) -> FlashTile:
    """The first of `flash_tiles`; ShapeError where no tile fits."""
    for tile in flash_tiles(head_dim, dtype, capabilities):
        return tile
    most = min(capabilities.max_workgroup_bytes, _ENOUGH_WORKGROUP_BYTES)
    raise ShapeError(f"flash_attention: no tile of head dim {head_dim} in {dtype} fits {most} bytes")


def matrix_flash_tiles(head_dim: int, units: MatrixUnits, capabilities: Capabilities) -> list[MatrixFlashTile]:
    """Tiles that may serve heads of that size well on a device: those that its workgroups and registers can hold."""
    tiles = [
        MatrixFlashTile(rows * subgroups, keys, subgroups, units)
        for rows in range(units.m, units.subgroup_size + 1, units.m)
        for keys in (64, 32, 16)
        for subgroups in (8, 4, 2, 1)
        if units.subgroup_size % rows == 0 and rows * keys % (8 * units.subgroup_size) == 0
    ]
    return [
        tile
        for tile in tiles
        if tile.shared_bytes(head_dim, "f16") <= capabilities.max_workgroup_bytes
        and tile.num_threads <= capabilities.max_workgroup_size
        and tile.num_registers(head_dim) <= _MOST_REGISTERS
    ]


def choose_matrix_flash_tile(head_dim: int, units: MatrixUnits, capabilities: Capabilities) -> MatrixFlashTile | None:
    """The tile for heads of that size, of those that fit: the one nearest to what is fastest (docs/tuning.md)."""
    rows = units.subgroup_size if head_dim <= 96 else max(units.m, units.subgroup_size // 2)
    keys = 16 if head_dim <= 48 else 32
    subgroups = 2 if 48 < head_dim <= 64 else 4

    def distance(tile: MatrixFlashTile) -> tuple[int, int, int]:
        return abs(tile.rows - rows), abs(tile.keys - keys), abs(tile.subgroups - subgroups)

    return min(matrix_flash_tiles(head_dim, units, capabilities), key=distance, default=None)


def flash_attention(
    q: TensorSpec,
    k: TensorSpec,
    v: TensorSpec,
    out: TensorSpec,
    *,
    num_heads: int,
    tile: FlashTile | MatrixFlashTile,
    head_dim: int | None = None,
    causal: bool = False,
) -> KernelCall:
    """out_h = softmax(q_h k_h^T / sqrt(D)) v_h; q, out: (B, N, heads D), k, v: (B, M, heads D), one dtype.

    q, k and v may be views of columns, such as thirds of one tensor. With `head_dim` the root is of that, and the other
    of a head's D channels are zeros. `causal`: row i sees only keys j <= i.
    """
    if len(q.shape) != 3 or num_heads < 1 or q.shape[2] % num_heads:
        raise ShapeError(f"flash_attention: {q} must be (B, N, heads D) with num_heads (={num_heads})")
    B, N, C = q.shape
    M = k.shape[1] if len(k.shape) == 3 else 0
    if k.shape != (B, M, C) or v.shape != k.shape or out.shape != q.shape:
        raise ShapeError(f"flash_attention: {q} on {k} and {v} must give {out}; q and out, and k and v, are alike")
    if not q.dtype == k.dtype == v.dtype == out.dtype:
        raise ShapeError(f"flash_attention: {q}, {k}, {v} and {out} must have one dtype")
    D = C // num_heads
    if D % 8 or D > MAX_HEAD_DIM:
        raise ShapeError(f"flash_attention: head dim (={D}) must be a multiple of 8 up to {MAX_HEAD_DIM}")
    if head_dim is not None and not 1 <= head_dim <= D:
        raise ShapeError(f"flash_attention: head_dim (={head_dim}) must be from 1 to the {D} channels of a head")
    for tensor in (q, k, v):
        if tensor.row_stride % tile.vector or tensor.first_column % tile.vector:
            raise ShapeError(
                f"flash_attention: {tensor} begins at column {tensor.first_column} of {tensor.row_stride}; with {tile} "
                f"both must be multiples of {tile.vector}"
            )
    return KernelCall(
        source="optimized/flash_attention.wgsl",
        entry_point="flash_attention",
        dtype=q.dtype,
        bindings=read_columns(q, k, v) + write(out),
        constants=tile.constants(D, q.dtype),
        params={
            "queries": N,
            "keys": M,
            # Strides and offsets are in vectors.
            "q_row": q.row_stride // tile.vector,
            "q_first": q.first_column // tile.vector,
            "k_row": k.row_stride // tile.vector,
            "k_first": k.first_column // tile.vector,
            "v_row": v.row_stride // tile.vector,
            "v_first": v.first_column // tile.vector,
            "out_row": C // tile.vector,
            "diagonal": 1 if causal else M,  # row 0 sees so many keys
            "scale": math.log2(math.e) / math.sqrt(D if head_dim is None else head_dim),
        },
        workgroups=(ceil_div(N, tile.queries), num_heads, B),
    )
