"""Direct 3x3 convolutions at SD 1.4's shapes: `python -m benchmarks.kernels.bench_conv2d_direct`."""

from collections.abc import Iterator

import numpy as np

from benchmarks.kernels.cases import Case, main
from benchmarks.shapes import CONV2D
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import TensorSpec

__all__ = ["cases"]


def cases(kernels: Kernels) -> Iterator[Case]:
    """Every shape, checked at one pixel and, with its padding, at a corner."""
    for name, (B, H, W, C_in, C_out) in CONV2D.items():
        x = TensorSpec("x", (B, H, W, C_in), kernels.dtype, "input")
        weight = TensorSpec("weight", (3, 3, C_in, C_out), kernels.dtype, "input")
        out = TensorSpec("out", (B, H, W, C_out), kernels.dtype, "output")

        def expect(arrays: dict[str, np.ndarray]) -> np.ndarray:
            image, filters = arrays["x"][0, :3, :3].astype(np.float64), arrays["weight"].astype(np.float64)
            corner = np.einsum("ijc,ijco->o", image[:2, :2], filters[1:, 1:])
            return np.stack([corner, np.einsum("ijc,ijco->o", image, filters)])

        flop = 2 * B * H * W * 9 * C_in * C_out
        calls = kernels.conv2d(x, weight, out, Epilogue())
        yield Case(f"conv2d {name}", calls, expect, np.s_[0, (0, 1), (0, 1)], flop=flop)


if __name__ == "__main__":
    main(cases, __doc__)
