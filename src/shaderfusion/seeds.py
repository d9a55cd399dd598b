"""Which noise a run's pictures get from its seed: whose generator, and one for all pictures or one for each."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from shaderfusion.brownian import BrownianPath, Times
from shaderfusion.errors import InputError
from shaderfusion.files import shown
from shaderfusion.philox import PhiloxGenerator
from shaderfusion.random import NormalGenerator, require_seed

__all__ = ["RNGS", "SEEDS", "PictureNoise", "Rng", "Seeds", "require_noise"]

Rng = Literal["cpu", "philox"]
Seeds = Literal["joint", "each"]

RNGS: Mapping[str, type[NormalGenerator] | type[PhiloxGenerator]] = {"cpu": NormalGenerator, "philox": PhiloxGenerator}
"""torch's generators: on a CPU, and on a CUDA device."""

SEEDS = ("joint", "each")
"""One generator for all pictures, as diffusers has it, or picture i by itself with seed + i, as the web UIs do."""


def require_noise(seed: int, num_pictures: int, rng: str, seeds: str) -> None:
    """InputError unless these say what noise to draw."""
    if not isinstance(rng, str) or rng not in RNGS:
        raise InputError(f"rng (={shown(rng)}) must be {' or '.join(RNGS)}")
    if seeds not in SEEDS:
        raise InputError(f"seeds (={shown(seeds)}) must be {' or '.join(SEEDS)}")
    require_seed(seed)
    if seeds == "each":
        require_seed(seed + num_pictures - 1)


class PictureNoise:
    """The noise of a run: each draw goes on after the last. The arguments are those of `require_noise`."""

    def __init__(self, seed: int, num_pictures: int, rng: Rng = "cpu", seeds: Seeds = "joint") -> None:
        self._rng = RNGS[rng]
        self._seeds = range(seed, seed + (num_pictures if seeds == "each" else 1))
        self._pictures_of_one = num_pictures // len(self._seeds)
        self._generators = [self._rng(each) for each in self._seeds]
        self._paths: list[BrownianPath] = []

    def draw(self, shape: Sequence[int], num_rows: int | None = None) -> np.ndarray:
        """Standard normal noise for each picture, (pictures, *shape) float32, or num_rows of one generator."""
        is_joint = len(self._generators) == 1
        rows = num_rows if is_joint and num_rows is not None else self._pictures_of_one
        return np.concatenate([generator.randn((rows, *shape)) for generator in self._generators])

    def draw_along(self, times: Times, call: int, shape: Sequence[int]) -> np.ndarray:
        """That of a call whose noise is of a Brownian path, one of each seed; the generators stay where they are."""
        if not self._paths:
            rows = (self._pictures_of_one, *shape)
            self._paths = [BrownianPath(seed, rows, times.start, times.end, self._rng) for seed in self._seeds]
        return np.concatenate([path.increment(*times.spans[call]) for path in self._paths])
