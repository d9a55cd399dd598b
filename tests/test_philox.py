"""philox: its definition to 2 ulp, published values, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shaderfusion.errors import InputError
from shaderfusion.philox import PhiloxGenerator, philox

NUM_KEPT = 32  # of a draw, at either end: see make_philox.py

with np.load(Path(__file__).parent / "golden" / "philox.npz") as arrays:
    GOLDEN = {name: arrays[name] for name in arrays.files}

# Known answers of the authors' library, Random123: counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
# What AUTOMATIC1111's modules/rng_philox.py says that torch gives on a GPU.
PUBLISHED = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    result = philox([np.array([word], np.uint32) for word in counter], key)
    assert tuple(int(word[0]) for word in result) == words


def test_published_values() -> None:
    values = PhiloxGenerator(0).randn((3, 4))
    np.testing.assert_array_max_ulp(values, np.array(PUBLISHED, np.float32), maxulp=1)


@pytest.mark.parametrize("name", GOLDEN)
def test_matches_the_definition(name: str) -> None:
    """In float64, draws one after the other."""
    seed, draws = name.split(":")
    generator, values = PhiloxGenerator(int(seed)), []
    for lengths in draws.split(","):
        shape = tuple(map(int, lengths.split("x")))
        drawn = generator.randn(shape)
        assert (drawn.shape, drawn.dtype) == (shape, np.float32)
        flat = drawn.reshape(-1)
        values += [flat] if flat.size <= 2 * NUM_KEPT else [flat[:NUM_KEPT], flat[-NUM_KEPT:]]
    np.testing.assert_array_max_ulp(np.concatenate(values), GOLDEN[name].astype(np.float32), maxulp=2)


def test_is_standard_normal() -> None:
    values = PhiloxGenerator(3).randn((1000, 500)).astype(np.float64)
    # four to six standard deviations of each estimate
    assert abs(values.mean()) < 6e-3
    assert abs(values.std() - 1) < 5e-3
    assert abs((values**4).mean() - 3) < 0.06
    assert abs((values[:, 1:] * values[:, :-1]).mean()) < 9e-3


def test_seeds_are_of_64_bits() -> None:
    np.testing.assert_array_equal(PhiloxGenerator(-1).randn((5,)), PhiloxGenerator(2**64 - 1).randn((5,)))
    assert not np.array_equal(PhiloxGenerator(1).randn((5,)), PhiloxGenerator(2**32 + 1).randn((5,)))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.0, "1", None, True])
def test_seeds_that_are_none(seed: Any) -> None:
    with pytest.raises(InputError, match=r"seed \(=.*\) must be a whole number from"):
        PhiloxGenerator(seed)


@pytest.mark.parametrize("shape", [4, (4, -1), (4.0,), None])
def test_shapes_that_are_none(shape: Any) -> None:
    with pytest.raises(InputError, match=r"shape \(=.*\) must "):
        PhiloxGenerator(0).randn(shape)
