"""seeds: one generator for all pictures, or one for each, and what is refused."""

from typing import Any

import numpy as np
import pytest

from shaderfusion.brownian import BrownianPath, Times
from shaderfusion.errors import InputError
from shaderfusion.philox import PhiloxGenerator
from shaderfusion.random import NormalGenerator
from shaderfusion.seeds import RNGS, SEEDS, PictureNoise, Rng, require_noise

SHAPE = (4, 3, 5)


@pytest.mark.parametrize("rng", RNGS)
def test_joint_is_one_generator(rng: Rng) -> None:
    noise, generator = PictureNoise(7, 3, rng), {"cpu": NormalGenerator, "philox": PhiloxGenerator}[rng](7)
    for _ in range(3):
        np.testing.assert_array_equal(noise.draw(SHAPE), generator.randn((3, *SHAPE)))


@pytest.mark.parametrize("rng", RNGS)
@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 3)])  # few values leave one over for the next draw
def test_each_is_as_pictures_alone(rng: Rng, shape: tuple[int, ...]) -> None:
    together, alone = PictureNoise(7, 3, rng, "each"), [PictureNoise(7 + index, 1, rng) for index in range(3)]
    for _ in range(3):
        np.testing.assert_array_equal(together.draw(shape), np.concatenate([noise.draw(shape) for noise in alone]))


@pytest.mark.parametrize("rng", RNGS)
def test_noise_along_a_path(rng: Rng) -> None:
    """One path for all pictures, or one of each seed, beside the generators of other noise."""
    times = Times(0.5, 4.0, ((4.0, 2.5), (4.0, 1.0)))
    joint, each, other = PictureNoise(7, 2, rng), PictureNoise(7, 2, rng, "each"), PictureNoise(7, 2, rng)
    generator = {"cpu": NormalGenerator, "philox": PhiloxGenerator}[rng]
    for call in range(2):
        start, end = times.spans[call]
        path = BrownianPath(7, (2, *SHAPE), 0.5, 4.0, generator)
        np.testing.assert_array_equal(joint.draw_along(times, call, SHAPE), path.increment(start, end))
        paths = [BrownianPath(7 + index, SHAPE, 0.5, 4.0, generator) for index in range(2)]
        alone = [path.increment(start, end) for path in paths]
        np.testing.assert_array_equal(each.draw_along(times, call, SHAPE), alone)
        np.testing.assert_array_equal(joint.draw(SHAPE), other.draw(SHAPE))


@pytest.mark.parametrize("seeds", SEEDS)
def test_the_largest_seed(seeds: str) -> None:
    require_noise(2**64 - 3, 3, "cpu", seeds)
    if seeds == "each":
        with pytest.raises(InputError, match=r"seed \(=18446744073709551616\) must be a whole number"):
            require_noise(2**64 - 3, 4, "cpu", seeds)


@pytest.mark.parametrize(
    ("rng", "seeds", "sentence"),
    [
        ("cuda", "joint", r"rng \(='cuda'\) must be cpu or philox"),
        (["cpu"], "joint", r"rng \(=\['cpu'\]\) must be cpu or philox"),
        ("cpu", "every", r"seeds \(='every'\) must be joint or each"),
        ("cpu", None, r"seeds \(=None\) must be joint or each"),
    ],
)
def test_refuses(rng: Any, seeds: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        require_noise(1, 2, rng, seeds)
