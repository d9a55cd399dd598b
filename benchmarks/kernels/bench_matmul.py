"""Matrix products at SD 1.4's shapes: `python -m benchmarks.kernels.bench_matmul`."""

from collections.abc import Iterator

import numpy as np

from benchmarks.kernels.cases import Case, main
from benchmarks.shapes import MATMUL
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import TensorSpec

__all__ = ["cases"]


def cases(kernels: Kernels) -> Iterator[Case]:
    """Every shape, checked on its first rows."""
    for name, (M, N, K) in MATMUL.items():
        a = TensorSpec("a", (M, K), kernels.dtype, "input")
        b = TensorSpec("b", (K, N), kernels.dtype, "input")
        out = TensorSpec("out", (M, N), kernels.dtype, "output")

        def expect(arrays: dict[str, np.ndarray]) -> np.ndarray:
            return arrays["a"][:8].astype(np.float64) @ arrays["b"].astype(np.float64)

        yield Case(f"matmul {name}", kernels.matmul(a, b, out, Epilogue()), expect, np.s_[:8], flop=2 * M * N * K)


if __name__ == "__main__":
    main(cases, __doc__)
