"""Exact attention in one dispatch, without a tensor of scores: FlashAttention."""

import math
from dataclasses import dataclass

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall, ceil_div, read, write
from shaderfusion.kernels.capabilities import Capabilities
from shaderfusion.tensor import DType, TensorSpec, dtype_size_bytes

__all__ = ["MAX_HEAD_DIM", "FlashTile", "choose_flash_tile", "flash_attention", "flash_tiles"]

MAX_HEAD_DIM = 160

_ENOUGH_WORKGROUP_BYTES = 32768
"""A tile takes no more workgroup memory, even where there is more, so that a GPU can hold several workgroups."""


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

    def fits(self, head_dim: int, dtype: DType, max_bytes: int, max_threads: int) -> bool:
        """Whether a workgroup of these limits can hold it."""
        return self.shared_bytes(head_dim, dtype) <= max_bytes and self.num_threads <= max_threads

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
    return [tile for tile in tiles if tile.fits(head_dim, dtype, max_bytes, capabilities.max_workgroup_size)]


def choose_flash_tile(head_dim: int, dtype: DType, capabilities: Capabilities) -> FlashTile:
    """The first of `flash_tiles`; ShapeError where no tile fits."""
    for tile in flash_tiles(head_dim, dtype, capabilities):
        return tile
    most = min(capabilities.max_workgroup_bytes, _ENOUGH_WORKGROUP_BYTES)
    raise ShapeError(f"flash_attention: no tile of head dim {head_dim} in {dtype} fits {most} bytes")


def flash_attention(
    q: TensorSpec,
    k: TensorSpec,
    v: TensorSpec,
    out: TensorSpec,
    *,
    num_heads: int,
    tile: FlashTile,
    head_dim: int | None = None,
    causal: bool = False,
) -> KernelCall:
    """out_h = softmax(q_h k_h^T / sqrt(D)) v_h; q, out: (B, N, heads D), k, v: (B, M, heads D), one dtype.

    With `head_dim` the root is of that, and the other of a head's D channels are zeros. `causal`: row i sees only keys
    j <= i.
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
    return KernelCall(
        source="optimized/flash_attention.wgsl",
        entry_point="flash_attention",
        dtype=q.dtype,
        bindings=read(q, k, v) + write(out),
        constants=tile.constants(D, q.dtype),
        params={
            "queries": N,
            "keys": M,
            "row_stride": C // 4,  # in vectors of 4
            "diagonal": 1 if causal else M,  # row 0 sees so many keys
            "scale": math.log2(math.e) / math.sqrt(D if head_dim is None else head_dim),
        },
        workgroups=(ceil_div(N, tile.queries), num_heads, B),
    )
