"""Group norm with SiLU at SD 1.4's shapes, in one dispatch and not: `python -m benchmarks.kernels.bench_group_norm`."""

from collections.abc import Iterator

import numpy as np

from benchmarks.kernels.cases import Case, main
from shaderfusion.kernels import reference
from shaderfusion.kernels.baseline.group_norm_unfused import group_norm_unfused
from shaderfusion.kernels.optimized.group_norm import group_norm
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import TensorSpec

__all__ = ["cases"]

# name: (B, H, W, C) of SD 1.4 at 512x512 with guidance; the decoder's batch is 1
SHAPES: dict[str, tuple[int, int, int, int]] = {
    "unet 320@64": (2, 64, 64, 320),
    "unet 960@64": (2, 64, 64, 960),
    "unet 640@32": (2, 32, 32, 640),
    "unet 1280@16": (2, 16, 16, 1280),
    "unet 2560@8": (2, 8, 8, 2560),
    "vae 512@128": (1, 128, 128, 512),
    "vae 256@256": (1, 256, 256, 256),
    "vae 128@512": (1, 512, 512, 128),
}
NUM_GROUPS, EPS = 32, 1e-5


def cases(kernels: Kernels) -> Iterator[Case]:
    """Every shape, checked on its first group."""
    for name, (B, H, W, C) in SHAPES.items():
        x = TensorSpec("x", (B, H, W, C), kernels.dtype, "input")
        out = TensorSpec("out", (B, H, W, C), kernels.dtype, "output")
        weight, bias = (TensorSpec(n, (C,), kernels.dtype, "input") for n in ("weight", "bias"))
        channels = C // NUM_GROUPS

        def expect(arrays: dict[str, np.ndarray], channels: int = channels) -> np.ndarray:
            x, weight, bias = (arrays[name][..., :channels].astype(np.float64) for name in ("x", "weight", "bias"))
            return reference.group_norm(x[:1], weight, bias, num_groups=1, eps=EPS, activation="silu")

        unfused = group_norm_unfused(x, weight, bias, out, num_groups=NUM_GROUPS, eps=EPS, activation="silu")
        where = np.s_[:1, ..., :channels]
        yield Case(f"group_norm_unfused {name}", unfused, expect, where, flop=0)
        workgroups = kernels.group_norm_workgroups(x, NUM_GROUPS)
        fused = group_norm(x, weight, bias, out, num_groups=NUM_GROUPS, eps=EPS, activation="silu", **workgroups)
        yield Case(f"group_norm {name}", [fused], expect, where, flop=0)


if __name__ == "__main__":
    main(cases, __doc__)
