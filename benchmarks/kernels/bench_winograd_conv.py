"""F(4x4, 3x3) beside the direct convolution at SD 1.4's shapes: `python -m benchmarks.kernels.bench_winograd_conv`.

Filters are transformed in the run. TFLOP/s are those of the direct sum, whatever the algorithm multiplies.
`shaderfusion bench winograd` has all layers and tile sizes.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.kernels.cases import Case, main
from benchmarks.shapes import CONV2D
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.select import Kernels, Optimizations
from shaderfusion.tensor import TensorSpec

__all__ = ["cases"]


def cases(kernels: Kernels) -> Iterator[Case]:
    """Every shape, checked at one pixel and, with its padding, at a corner."""
    plain = replace(kernels, optimizations=Optimizations.parse("none"))
    for name, (B, H, W, C_in, C_out) in CONV2D.items():
        x = TensorSpec("x", (B, H, W, C_in), kernels.dtype, "input")
        weight = TensorSpec("weight", (3, 3, C_in, C_out), kernels.dtype, "input")
        out = TensorSpec("out", (B, H, W, C_out), kernels.dtype, "output")

        def expect(arrays: dict[str, np.ndarray]) -> np.ndarray:
            image, filters = arrays["x"][0, :3, :3].astype(np.float64), arrays["weight"].astype(np.float64)
            corner = np.einsum("ijc,ijco->o", image[:2, :2], filters[1:, 1:])
            return np.stack([corner, np.einsum("ijc,ijco->o", image, filters)])

        flop, where = 2 * B * H * W * 9 * C_in * C_out, np.s_[0, (0, 1), (0, 1)]
        yield Case(f"direct {name}", plain.conv2d(x, weight, out, Epilogue()), expect, where, flop)
        yield Case(f"F(4x4) {name}", kernels.winograd_conv(x, weight, out, Epilogue(), m=4), expect, where, flop)


if __name__ == "__main__":
    main(cases, __doc__)
