"""Write randn.npz: torch's noise for a few shapes and seeds. Needs the `golden` extra and an x86-64 CPU with AVX2.

Each array is named "seed:shape", or "seed:shape,shape,..." for draws of one generator one after the other, side by
side. Of a large one only the first and last 64 values are kept.
"""

# pyright: reportMissingImports=false

from itertools import product
from pathlib import Path

import numpy as np
import torch

SHAPES = [(), (0,), (1,), (3,), (15,), (16,), (17,), (31,), (32,), (5, 7), (1000,), (1, 4, 8, 8), (2, 4, 64, 64)]
SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32 + 42, 2**63 - 1, 2**64 - 1, -1, -42, -(2**63)]
# Below 60000, the seeds whose 16 values come nearest to 0, where the float32 angle's rounding decides every digit.
SEEDS_NEAR_ZERO = [27026, 58323, 41203, 31813, 53522]
# Draws of fewer than 16 values leave one over for the next such draw; others neither use it nor drop it.
DRAWS = [[(1, 4, 3, 5)] * 3, [(3,)] * 4, [(3,), (17,), (0,), (2, 1)], [(1,), (16,), (1,), (32,), (5,)], [(15,), (15,)]]
NUM_KEPT = 64


def main() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX2", "AVX512"):
        raise SystemExit(f"torch would use its {capability} code, which rounds otherwise")
    arrays = {}
    for seed, shape in [*product(SEEDS, SHAPES), *product(SEEDS_NEAR_ZERO, [(16,)])]:
        values = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy().reshape(-1)
        if values.size > 2 * NUM_KEPT:
            values = np.concatenate([values[:NUM_KEPT], values[-NUM_KEPT:]])
        arrays[f"{seed}:{'x'.join(map(str, shape))}"] = values
    for draws in DRAWS:
        generator = torch.Generator("cpu").manual_seed(42)
        name = ",".join("x".join(map(str, shape)) for shape in draws)
        arrays[f"42:{name}"] = np.concatenate([torch.randn(s, generator=generator).numpy().reshape(-1) for s in draws])
    path = Path(__file__).with_name("randn.npz")
    np.savez_compressed(path, allow_pickle=False, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size} bytes, torch {torch.__version__}, {capability}")


if __name__ == "__main__":
    main()
