"""brownian: torchsde's paths, which are functions of time, and whose increments are normal noise."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from shaderfusion.brownian import BrownianPath
from shaderfusion.philox import PhiloxGenerator

# Of make_brownian.py.
CASES = [(0, (12,)), (42, (12,)), (2**32 + 42, (12,)), (2**64 - 1, (12,)), (7, (2, 4, 3, 5)), (7, (1, 4, 32, 32))]
ENDS = (0.029167533, 14.614647)
TIMES = (14.614649, 9.1, 5.728, 1.0, 0.5, 0.123456, 0.029167, 3.0, 3.000001, 3.0000012, 14.614646, 2.5)
NUM_KEPT = 12
GOLDEN = Path(__file__).with_name("golden") / "brownian.npz"


@pytest.mark.parametrize(("index", "case"), list(enumerate(CASES)))
def test_noise_is_that_of_torchsde(index: int, case: tuple[int, tuple[int, ...]]) -> None:
    start, end, *times = np.array([*ENDS, *TIMES], dtype=np.float32).tolist()
    path = BrownianPath(*case, start, end)
    noise = np.array([path.increment(*pair).reshape(-1)[:NUM_KEPT] for pair in pairwise(times)])
    with np.load(GOLDEN) as golden:
        np.testing.assert_allclose(noise, golden["exact"][index], rtol=2**-22, atol=1e-12)
        np.testing.assert_allclose(noise, golden["sampled"][index], rtol=0, atol=1e-6)  # sums in float32


def test_a_path_is_a_function_of_time() -> None:
    """It does not depend on what was asked before, and increments add up."""
    path, other = BrownianPath(3, (5,), *ENDS), BrownianPath(3, (5,), *ENDS)
    forth = [path.increment(*pair) for pair in pairwise(TIMES)]
    back = [other.increment(*pair) for pair in pairwise(TIMES[::-1])]
    np.testing.assert_array_equal(forth, -np.array(back[::-1]))
    whole, first, second = path.increment(1, 9), other.increment(1, 4), path.increment(4, 9)
    np.testing.assert_allclose(8**0.5 * whole, 3**0.5 * first + 5**0.5 * second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [1, -1])
def test_increments_are_independent_normal_noise(seed: int) -> None:
    path = BrownianPath(seed, (4096,), *ENDS)
    noise = [path.increment(*pair) for pair in pairwise([14.6, 11.3, 0.7, 0.69, 0.03])]
    np.testing.assert_allclose(np.cov(noise), np.eye(4), atol=0.1)
    assert np.abs(np.mean(noise, axis=1)).max() < 0.08


def test_generators_are_those_of_seeds_of_seeds() -> None:
    """Of the whole path, and of the half of it."""
    path = BrownianPath(9, (2, 3), 0.0, 2.0, PhiloxGenerator)
    sequences = (np.random.SeedSequence(9, spawn_key=place, pool_size=24) for place in ((), (0, 0)))
    whole, half = (PhiloxGenerator(int(each.generate_state(1)[0])).randn((2, 3)) for each in sequences)
    np.testing.assert_allclose(path.increment(0, 2), whole, rtol=1e-6)
    np.testing.assert_allclose(path.increment(0, 1), (whole + half) * 0.5**0.5, rtol=1e-5)
    np.testing.assert_allclose(path.increment(1, 2), (whole - half) * 0.5**0.5, rtol=1e-5)


def test_no_time_no_noise() -> None:
    assert not BrownianPath(1, (3,), 0.5, 0.5).increment(0.5, 0.5).any()
