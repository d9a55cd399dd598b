"""Attention in one dispatch, on matrix units too, and in three: python -m benchmarks.kernels.bench_flash_attention."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.kernels.cases import Case, main
from shaderfusion.kernels import reference
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.optimized.flash_attention import choose_flash_tile, choose_matrix_flash_tile, flash_attention
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import TensorSpec

__all__ = ["cases"]

# name: (B, N, M, heads, D) of SD 1.4 at 512x512 with guidance, and the last of SDXL at 1024x1024
SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    "self 4096 d40": (2, 4096, 4096, 8, 40),
    "self 1024 d80": (2, 1024, 1024, 8, 80),
    "self 256 d160": (2, 256, 256, 8, 160),
    "self 64 d160": (2, 64, 64, 8, 160),
    "cross 4096 d40": (2, 4096, 77, 8, 40),
    "cross 1024 d80": (2, 1024, 77, 8, 80),
    "cross 256 d160": (2, 256, 77, 8, 160),
    "cross 64 d160": (2, 64, 77, 8, 160),
    "self 4096 d64": (2, 4096, 4096, 10, 64),
}
ROWS = np.s_[:, -8:]  # of every image


def cases(kernels: Kernels) -> Iterator[Case]:
    """Every shape, checked on its last rows."""
    plain = replace(kernels, optimizations=Optimizations.parse("none"))
    for name, (B, N, M, num_heads, D) in SHAPES.items():
        q = TensorSpec("q", (B, N, num_heads * D), kernels.dtype, "input")
        k = TensorSpec("k", (B, M, num_heads * D), kernels.dtype, "input")
        v = TensorSpec("v", k.shape, kernels.dtype, "input")
        out = TensorSpec("out", q.shape, kernels.dtype, "output")
        expect = partial(attend, num_heads=num_heads)
        flop = 4 * B * num_heads * N * M * D
        tiles = {"flash": choose_flash_tile(D, kernels.dtype, kernels.capabilities)}
        if kernels.matrix_units:
            on_matrices = choose_matrix_flash_tile(D, kernels.matrix_units, kernels.capabilities)
            tiles |= {"matrix flash": on_matrices} if on_matrices else {}
        for way, tile in tiles.items():
            flash = [flash_attention(q, k, v, out, num_heads=num_heads, tile=tile)]
            yield Case(f"{way} {name}", flash, expect, ROWS, flop)
        yield Case(f"unfused {name}", plain.attention(q, k, v, out, num_heads=num_heads), expect, ROWS, flop)


def attend(arrays: dict[str, np.ndarray], *, num_heads: int) -> np.ndarray:
    """The last rows in float64."""
    q, k, v = (arrays[name].astype(np.float64) for name in "qkv")
    return reference.flash_attention(q[ROWS], k, v, num_heads=num_heads)


if __name__ == "__main__":
    main(cases, __doc__)
