"""Write brownian.npz: noise of Brownian paths. Needs the `golden` extra and an x86-64 CPU with AVX2.

`sampled` is what diffusers' BrownianTreeNoiseSampler, which is k-diffusion's, makes of torchsde's path in float32;
`exact` the same increments of a path that torchsde makes in float64 of the same float32 noise. Both are
(cases, len(TIMES) - 1, NUM_KEPT), of each of CASES, a seed and a shape, the first values of each increment.
"""

# pyright: reportMissingImports=false

import warnings
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torchsde
from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler
from torchsde._brownian import brownian_interval

CASES = [(0, (12,)), (42, (12,)), (2**32 + 42, (12,)), (2**64 - 1, (12,)), (7, (2, 4, 3, 5)), (7, (1, 4, 32, 32))]
ENDS = (0.029167533, 14.614647)
# Down from beyond one end to beyond the other, as samplers go; up again; by one unit of the last digit, and by less.
TIMES = (14.614649, 9.1, 5.728, 1.0, 0.5, 0.123456, 0.029167, 3.0, 3.000001, 3.0000012, 14.614646, 2.5)
NUM_KEPT = 12


def float32_noise(size: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator(device).manual_seed(int(seed))).to(dtype)


def sampled(seed: int, shape: tuple[int, ...]) -> list[np.ndarray]:
    sampler = BrownianTreeNoiseSampler(torch.zeros(shape), *ENDS, seed)
    return [sampler(*map(torch.tensor, pair)).numpy().reshape(-1)[:NUM_KEPT] for pair in pairwise(TIMES)]


def exact(seed: int, shape: tuple[int, ...]) -> list[np.ndarray]:
    with mock.patch.object(brownian_interval, "_randn", float32_noise):
        start, end, *times = np.array([*ENDS, *TIMES], dtype=np.float32).tolist()
        path = torchsde.BrownianInterval(
            start, end, shape, torch.float64, entropy=seed, tol=1e-6, pool_size=24, halfway_tree=True
        )
        increments = []
        for a, b in pairwise(times):
            change = path(min(a, b), max(a, b)) * (1 if a < b else -1) / abs(b - a) ** 0.5
            increments.append(change.numpy().reshape(-1)[:NUM_KEPT])
    return increments


def main() -> None:
    warnings.filterwarnings("ignore", "Should have t[ab]")  # a time beyond an end
    arrays = {
        "sampled": np.array([sampled(*case) for case in CASES]),
        "exact": np.array([exact(*case) for case in CASES], dtype=np.float32),
    }
    path = Path(__file__).with_name("brownian.npz")
    np.savez_compressed(path, allow_pickle=False, **arrays)
    print(f"{path.name}: {arrays['exact'].shape}, {path.stat().st_size} bytes, torchsde {torchsde.__version__}")


if __name__ == "__main__":
    main()
