"""Matrix products as linear layers, by the rules for the device: python -m benchmarks.kernels.bench_matmul."""

from collections.abc import Iterator

import numpy as np

from benchmarks.kernels.cases import Case, main
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import TensorSpec

__all__ = ["cases"]

# (M, N, K): 3x3 convolutions of three levels of SD 1.4's UNet as products, and a large square one
SHAPES = [(8192, 320, 2880), (2048, 640, 5760), (512, 1280, 11520), (4096, 4096, 4096)]
ROWS = np.s_[-8:]


def cases(kernels: Kernels) -> Iterator[Case]:
    """Every shape, checked on its last rows."""
    for M, N, K in SHAPES:
        a = TensorSpec("a", (M, K), kernels.dtype, "input")
        b = TensorSpec("b", (K, N), kernels.dtype, "input")
        out = TensorSpec("out", (M, N), kernels.dtype, "output")
        yield Case(f"{M}x{N}x{K}", kernels.matmul(a, b, out, Epilogue()), multiply, ROWS, 2 * M * N * K)


def multiply(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The last rows in float64."""
    return reference.matmul(arrays["a"][ROWS].astype(np.float64), arrays["b"].astype(np.float64))


if __name__ == "__main__":
    main(cases, __doc__)
