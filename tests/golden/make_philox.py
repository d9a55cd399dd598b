"""Write philox.npz: normal noise of Philox4x32-10 from its definition, in whole numbers of Python and float64.

Each array is named "seed:shape,shape,..." for draws of one generator one after the other, side by side. Of a draw only
the first and last 32 values are kept.
"""

import math
from pathlib import Path

import numpy as np

SEEDS = [0, 1, 42, 2**32 - 1, 2**32 + 42, 2**63 - 1, 2**64 - 1, -1]
SHAPES = [[(3, 4)], [(1,), (5, 7), (0,), (2, 4)], [(1, 4, 8, 8), (1, 4, 8, 8), (1, 4, 8, 8)]]
NUM_KEPT = 32


def words_of(counter: list[int], key: list[int]) -> list[int]:
    """Ten rounds, of section 3.3 and figure 2."""
    for index in range(10):
        k0, k1 = (key[0] + index * 0x9E3779B9) % 2**32, (key[1] + index * 0xBB67AE85) % 2**32
        high0, low0 = divmod(counter[0] * 0xD2511F53, 2**32)
        high1, low1 = divmod(counter[2] * 0xCD9E8D57, 2**32)
        counter = [high1 ^ counter[1] ^ k0, low1, high0 ^ counter[3] ^ k1, low0]
    return counter


def normal(seed: int, draw: int, index: int) -> float:
    high, low = divmod(seed % 2**64, 2**32)
    w0, w1, _, _ = words_of([draw, 0, index, 0], [low, high])
    return math.sqrt(-2 * math.log((w0 + 0.5) / 2**32)) * math.sin(2 * math.pi * (w1 + 0.5) / 2**32)


def main() -> None:
    arrays = {}
    for seed in SEEDS:
        for shapes in SHAPES:
            values = []
            for draw, shape in enumerate(shapes):
                size = math.prod(shape)
                kept = range(size) if size <= 2 * NUM_KEPT else [*range(NUM_KEPT), *range(size - NUM_KEPT, size)]
                values += [normal(seed, draw, index) for index in kept]
            arrays[f"{seed}:{','.join('x'.join(map(str, shape)) for shape in shapes)}"] = np.array(values)
    path = Path(__file__).with_name("philox.npz")
    np.savez_compressed(path, allow_pickle=False, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
