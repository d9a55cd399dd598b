"""Normal noise that equals torch's on a CUDA device, the web UIs' "GPU" and, without one, their "NV".

Value i of a tensor comes from a 32-bit counter-based generator alone (Philox4x32-10: Salmon et al. 2011, "Parallel
Random Numbers: As Easy as 1, 2, 3", section 3.3), whose key is the seed and whose counter is (draw, 0, i, 0), with the
draws of a generator counted from 0. Two of its four words make one normal number (Box and Muller 1958), as in cuRAND:

    u = (w0 + 1/2) / 2^32,    v = 2 pi (w1 + 1/2) / 2^32,    n = sqrt(-2 log(u)) sin(v)

It is computed in float64 here, and rounded once; a GPU computes in float32, and rounds u and v too. A tensor of more
values than the GPU runs threads, hundreds of thousands, torch fills in another order, which depends on the GPU.
"""

import math
from collections.abc import Sequence

import numpy as np

from shaderfusion.random import require_seed, require_shape

__all__ = ["PhiloxGenerator", "philox"]

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round: the golden ratio, and sqrt(3) - 1
NUM_ROUNDS = 10


class PhiloxGenerator:
    """torch.Generator("cuda").manual_seed(seed), as far as normal noise needs it: each draw goes on after the last.

    Seeds are torch's: -2^63 to 2^64 - 1. Raises InputError for another.
    """

    def __init__(self, seed: int) -> None:
        seed = require_seed(seed) % 2**64
        self._key = (seed % 2**32, seed >> 32)
        self._num_draws = 0

    def randn(self, shape: Sequence[int]) -> np.ndarray:
        """Standard normal noise: `shape` float32.

        Raises InputError for a shape that is not a sequence of whole numbers of at least 0.
        """
        shape = require_shape(shape)
        indices = np.arange(math.prod(shape), dtype=np.uint32)
        zeros = np.zeros_like(indices)
        words = philox((np.full_like(indices, self._num_draws), zeros, indices, zeros), self._key)
        self._num_draws = (self._num_draws + 1) % 2**32
        u, v = ((words[0] + 0.5) * 2.0**-32, 2 * np.pi * (words[1] + 0.5) * 2.0**-32)
        return (np.sqrt(-2 * np.log(u)) * np.sin(v)).astype(np.float32).reshape(shape)


def philox(counter: Sequence[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Four words for a counter of four words and a key of two; counters are arrays, (n,) uint32 each."""
    c0, c1, c2, c3 = counter
    for _ in range(NUM_ROUNDS):
        k0, k1 = map(np.uint32, key)
        # Of each product the low half, then the high one.
        product0 = np.multiply(MULTIPLIERS[0], c0, dtype=np.uint64).view("<u4")
        product1 = np.multiply(MULTIPLIERS[1], c2, dtype=np.uint64).view("<u4")
        c0, c1 = product1[1::2] ^ c1 ^ k0, product1[::2]
        c2, c3 = product0[1::2] ^ c3 ^ k1, product0[::2]
        key = ((key[0] + WEYL[0]) % 2**32, (key[1] + WEYL[1]) % 2**32)
    return [c0, c1, c2, c3]
