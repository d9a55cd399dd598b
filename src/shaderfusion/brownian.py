"""Brownian motion that equals torchsde's, whose increments are the noise of DPM++ SDE in diffusers and k-diffusion.

Between times a and b at which the path W is known it is halved (Lévy 1940), as in a "virtual Brownian tree" (Li et al.
2020, "Scalable Gradients for Stochastic Differential Equations", algorithm 3):

    W(m) = W(a) + (m - a) / (b - a) (W(b) - W(a)) + sqrt((m - a) (b - m) / (b - a)) n,    m = (a + b) / 2

and so on in the half where the time asked for is, until it is m; all times are rounded to DIGITS, which ends it. Each n
is the first draw of a generator of its own, whose seed NumPy's SeedSequence makes of the path's seed and of which half
of which half it is. So W depends on the seed and on the path's ends, and not on what else was asked.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from shaderfusion.philox import PhiloxGenerator
from shaderfusion.random import NormalGenerator

__all__ = ["BrownianPath", "Times"]

DIGITS = 6
POOL_SIZE = 24  # words of a SeedSequence


class Times(NamedTuple):
    """Those of a run whose noise is of one path."""

    start: float
    """Of the path, which is below its end."""
    end: float
    spans: tuple[tuple[float, float], ...]
    """Between which times each call has the increment."""


class _Interval(NamedTuple):
    start: float
    end: float
    depth: int = 0
    """As many halvings have made it."""
    place: int = 0
    """Among the equal parts that they make of the path, from 0."""

    @property
    def middle(self) -> float:
        return round((self.start + self.end) / 2, DIGITS)

    def half_with(self, time: float) -> "_Interval":
        if time <= self.middle:
            return _Interval(self.start, self.middle, self.depth + 1, 2 * self.place)
        return _Interval(self.middle, self.end, self.depth + 1, 2 * self.place + 1)


class BrownianPath:
    """A path from W(start) = 0, of values of a shape; `generator` makes the noise of a seed.

    Values are those of torchsde.BrownianInterval(start, end, shape, entropy=seed, tol=1e-6, pool_size=24,
    halfway_tree=True), computed in float64 of float32 noise, where torchsde's are all float32.
    """

    def __init__(
        self,
        seed: int,
        shape: Sequence[int],
        start: float,
        end: float,
        generator: Callable[[int], NormalGenerator | PhiloxGenerator] = NormalGenerator,
    ) -> None:
        self._seed, self._shape, self._generator = seed % 2**64, shape, generator
        whole = _Interval(round(start, DIGITS), round(end, DIGITS))
        w_end = (end - start) ** 0.5 * self._normal()
        self._w = {whole.start: np.zeros_like(w_end), whole.end: w_end}
        self._around = [whole]
        """The intervals around the last time asked for, down to the smallest, at whose ends W is known: the next is
        near."""
        self._last: dict[float, np.ndarray] = {}
        """W where the last increment began and ended, as the next begins there."""

    def increment(self, start: float, end: float) -> np.ndarray:
        """W(end) - W(start) over the root of the time between, which makes it standard normal: float32.

        Times beyond an end of the path are that end.
        """
        whole, known = self._around[0], self._last
        at = [round(min(max(time, whole.start), whole.end), DIGITS) for time in (start, end)]
        self._last = {time: known[time] if time in known else self._find(time) for time in at}
        w_start, w_end = (self._last[time] for time in at)
        return ((w_end - w_start) / (abs(end - start) ** 0.5 or 1.0)).astype(np.float32)

    def _find(self, time: float) -> np.ndarray:
        w = self._w
        around = [interval for interval in self._around if interval.start <= time <= interval.end]
        while time not in around[-1][:2]:  # about twenty times for the first time, and fewer for one near the last
            (a, b, depth, place), m = around[-1], around[-1].middle
            deviation = ((m - a) * (b - m) / (b - a)) ** 0.5
            w[m] = w[a] + (m - a) / (b - a) * (w[b] - w[a]) + deviation * self._normal(place, depth)
            around.append(around[-1].half_with(time))
        self._around, self._w = around, {t: w[t] for interval in around for t in interval[:2]}
        return w[time]

    def _normal(self, *key: int) -> np.ndarray:
        """The noise of a halving, or, without a key, of the whole path."""
        (seed,) = np.random.SeedSequence(self._seed, spawn_key=key, pool_size=POOL_SIZE).generate_state(1)
        return self._generator(int(seed)).randn(self._shape).astype(np.float64)
