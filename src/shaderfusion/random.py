"""Normal noise that equals torch's on a CPU, so that a seed gives the image it gives in other programs.

torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) takes 32-bit words from an MT19937 (Matsumoto
and Nishimura 1998) and turns pairs of uniform numbers into pairs of normal ones (Box and Muller 1958):

    n1, n2 = sqrt(-2 log(u1)) (cos(2 pi u2), sin(2 pi u2))

Fewer than 16 values are computed in float64. From 16 values on, torch computes in float32, with the polynomials of
Cephes (Moshier 1989; logf, sinf, cosf) and fused multiply-adds. Near a zero of the sine a float32 angle decides all
digits of the result, so the same polynomials are evaluated here, in the same order.

This is torch's code for processors with AVX2 or AVX-512. Its code for others rounds the angle differently, so torch
itself is up to about 2e-6 away from these values there.
"""

import math
import operator
from collections.abc import Sequence

import numpy as np

from shaderfusion.errors import InputError

__all__ = ["NormalGenerator", "randn", "require_seed", "require_shape"]

BLOCK = 16  # values that torch fills at once: 8 cosines, then 8 sines

# Cephes' coefficients, highest power first.
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
LOG_2 = (0.693359375, -2.12194440e-4)  # their sum, split so that the first times a small integer is exact
QUARTER_PI = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)  # likewise


class NormalGenerator:
    """torch.Generator("cpu").manual_seed(seed), as far as normal noise needs it: each draw goes on after the last.

    Seeds are torch's: -2^63 to 2^64 - 1, of which the generator uses the low 32 bits. Raises InputError for another.
    """

    def __init__(self, seed: int) -> None:
        self._words = np.random.RandomState(require_seed(seed) % 2**32)
        self._spare: np.ndarray = np.empty(0, np.float32)
        """The second of a pair of which a draw of few values needed the first: the next draw of few begins with it."""

    def randn(self, shape: Sequence[int]) -> np.ndarray:
        """Standard normal noise: `shape` float32, bit for bit torch's in all values measured.

        Raises InputError for a shape that is not a sequence of whole numbers of at least 0.
        """
        shape = require_shape(shape)
        size = math.prod(shape)
        if size >= BLOCK:
            return _many(self._words, size).reshape(shape)
        values = np.concatenate([self._spare, _pairs(self._words, max(0, -(-(size - len(self._spare)) // 2)))])
        self._spare = values[size:]
        return values[:size].reshape(shape)


def randn(shape: Sequence[int], seed: int) -> np.ndarray:
    """The first draw of a generator with that seed: `NormalGenerator.randn`."""
    return NormalGenerator(seed).randn(shape)


def require_seed(seed: int) -> int:
    """A seed that torch takes; InputError for another."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**64:
        raise InputError(f"seed (={seed!r}) must be a whole number from -2^63 to 2^64 - 1")
    return seed


def require_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A tensor's shape; InputError for what is none."""
    try:
        lengths = tuple(operator.index(length) for length in shape)
    except TypeError:
        raise InputError(f"shape (={shape!r}) must be a sequence of whole numbers") from None
    if any(length < 0 for length in lengths):
        raise InputError(f"shape (={lengths}) must have no negative length")
    return lengths


def _words(generator: np.random.RandomState, num_words: int) -> np.ndarray:
    """The generator's next 32-bit words: (num_words,) uint32."""
    return generator.randint(2**32, size=num_words, dtype=np.uint32)


def _pairs(generator: np.random.RandomState, num_pairs: int) -> np.ndarray:
    """(2 num_pairs,) float32, in float64 until the end; two words make one uniform number, two of those a pair."""
    high, low = _words(generator, 4 * num_pairs).reshape(-1, 2).astype(np.uint64).T
    u2, u1 = ((high << np.uint64(32) | low) % np.uint64(2**53) * 2.0**-53).reshape(-1, 2).T
    radius, theta = np.sqrt(-2 * np.log1p(-u1)), 2 * np.pi * u2
    return np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1).reshape(-1).astype(np.float32)


def _many(generator: np.random.RandomState, size: int) -> np.ndarray:
    """(size,) float32 in whole blocks; if the last one would be short, 16 new words fill the last 16 values."""
    whole = size // BLOCK * BLOCK
    num_redrawn = BLOCK if size > whole else 0
    uniform = (_words(generator, size + num_redrawn) % 2**24).astype(np.float32) * np.float32(2**-24)
    values = np.empty(size, np.float32)
    values[:whole] = _box_muller(uniform[:whole])
    if num_redrawn:
        values[-BLOCK:] = _box_muller(uniform[size:])
    return values


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """float32 in [0, 1) to normal, by blocks of 16: u1 = 1 - the first 8, u2 = the last 8."""
    blocks = uniform.reshape(-1, 2, BLOCK // 2)
    u1, u2 = 1 - blocks[:, 0], blocks[:, 1]
    radius = np.sqrt(-2 * _log(u1))
    cos, sin = _cos_sin(np.float32(2 * np.pi) * u2)
    return np.stack([radius * cos, radius * sin], axis=1).reshape(-1)


def _fma(a: np.ndarray, b: np.ndarray | float, c: np.ndarray | float) -> np.ndarray:
    """a * b + c of float32 values, rounded once: the product of two float32 is exact in float64."""
    wide = a.astype(np.float64) * np.float32(b) + np.float32(c)
    return wide.astype(np.float32)


def _polynomial(coefficients: Sequence[float], x: np.ndarray) -> np.ndarray:
    """Horner's rule."""
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = _fma(result, x, coefficient)
    return result


def _log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm of float32 in (0, 1]: x = 2^e (1 + m), with 1 + m from sqrt(1/2) to sqrt(2)."""
    mantissa, exponent = np.frexp(x)
    is_low = mantissa < np.float32(math.sqrt(0.5))
    m = np.where(is_low, 2 * mantissa, mantissa) - 1
    e = (exponent - is_low).astype(np.float32)
    m2 = m * m
    tail = _fma(_polynomial(LOG, m) * m, m2, e * np.float32(LOG_2[1]))
    return _fma(e, LOG_2[0], m + _fma(m2, -0.5, tail))


def _cos_sin(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of float32 from 0 to 2 pi: theta = (pi / 2) quadrant + x, with x from -pi/4 to pi/4."""
    octant = (theta * np.float32(4 / np.pi)).astype(np.int32)
    octant += octant % 2
    x = theta
    for part in QUARTER_PI:
        x = _fma(octant.astype(np.float32), -part, x)
    x2 = x * x
    cos = _fma(_polynomial(COS, x2) * x2, x2, -0.5 * x2) + 1
    sin = _fma(_polynomial(SIN, x2) * x2, x, x)
    quadrant = octant // 2 % 4
    is_odd = quadrant % 2 == 1
    cos, sin = np.where(is_odd, sin, cos), np.where(is_odd, cos, sin)
    return np.where((quadrant == 1) | (quadrant == 2), -cos, cos), np.where(quadrant >= 2, -sin, sin)
