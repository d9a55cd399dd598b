"""random: torch's noise to 2 ulp for a few shapes and seeds, and the seeds and shapes that are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shaderfusion.errors import InputError
from shaderfusion.random import NormalGenerator, randn

GOLDEN = Path(__file__).parent / "golden" / "randn.npz"
NUM_KEPT = 64  # of a large array, at either end: see make_randn.py

with np.load(GOLDEN) as arrays:
    TORCH = {name: arrays[name] for name in arrays.files}


def ulp(a: np.ndarray, b: np.ndarray) -> int:
    """The largest number of float32 values that two arrays' elements are apart; 0 and -0 are the same."""
    bits = np.stack([a, b]).view(np.int32).astype(np.int64)
    ordered = np.where(bits < 0, -(2**31) - bits, bits)
    return int(np.abs(ordered[0] - ordered[1]).max(initial=0))


@pytest.mark.parametrize("name", [name for name in TORCH if "," in name])
def test_draws_go_on_as_torchs(name: str) -> None:
    seed, draws = name.split(":")
    generator = NormalGenerator(int(seed))
    shapes = [tuple(map(int, lengths.split("x"))) for lengths in draws.split(",")]
    values = [generator.randn(shape) for shape in shapes]
    assert [array.shape for array in values] == shapes
    assert ulp(np.concatenate([array.reshape(-1) for array in values]), TORCH[name]) <= 2


@pytest.mark.parametrize("name", [name for name in TORCH if "," not in name])
def test_matches_torch(name: str) -> None:
    seed, lengths = name.split(":")
    shape = tuple(int(length) for length in lengths.split("x") if length)
    values = randn(shape, int(seed))
    assert values.shape == shape
    assert values.dtype == np.float32
    values = values.reshape(-1)
    if values.size > 2 * NUM_KEPT:
        values = np.concatenate([values[:NUM_KEPT], values[-NUM_KEPT:]])
    assert values.size == TORCH[name].size
    assert ulp(values, TORCH[name]) <= 2


def test_ulp_sees_one_bit() -> None:
    one, tiny = np.array([1, -1, 0, 1e-45], np.float32), np.array([0, 0, -0.0, -1e-45], np.float32)
    assert ulp(one, one) == 0
    assert ulp(one, np.nextafter(one, np.float32(2))) == 1
    assert ulp(tiny[:3], -tiny[:3]) == 0
    assert ulp(tiny, -tiny) == 2


def test_is_standard_normal() -> None:
    values = randn((1000, 1000), 3).astype(np.float64)
    cosines, sines = values.reshape(-1, 2, 8).swapaxes(0, 1).reshape(2, -1)
    # four to six standard deviations of each estimate
    assert abs(values.mean()) < 4e-3
    assert abs(values.std() - 1) < 3e-3
    assert abs((values**4).mean() - 3) < 0.04
    assert abs((cosines * sines).mean()) < 6e-3


def test_a_shape_only_arranges_the_values() -> None:
    np.testing.assert_array_equal(randn((2, 3, 5), 9).reshape(-1), randn((30,), 9))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.0, "1", None, True])
def test_seeds_torch_refuses(seed: Any) -> None:
    with pytest.raises(InputError, match=r"seed \(=.*\) must be a whole number from"):
        randn((4,), seed)


@pytest.mark.parametrize("shape", [4, (4, -1), (4.0,), ("4",), None])
def test_shapes_that_are_none(shape: Any) -> None:
    with pytest.raises(InputError, match=r"shape \(=.*\) must "):
        randn(shape, 0)
