"""Random values: the same in every run, other for each name, and distributed as promised."""

import numpy as np
import pytest

from shaderfusion.bench.values import image_like, normal


@pytest.mark.parametrize("shape", [(7,), (1000, 1000), (3, 2_000_000)], ids=str)  # the last repeats the pool
def test_normal(shape: tuple[int, ...]) -> None:
    values = normal("a", shape)
    assert (values.shape, values.dtype) == (shape, np.float32)
    np.testing.assert_array_equal(values, normal("a", shape))
    assert not np.array_equal(values, normal("b", shape))
    if values.size > 1000:
        assert abs(values.mean()) < 0.01
        assert abs(values.std() - 1) < 0.01


def test_image_like_falls_with_frequency() -> None:
    image = image_like("x", (1, 64, 48, 3))
    assert (image.shape, image.dtype) == ((1, 64, 48, 3), np.float32)
    assert image.std() == pytest.approx(1, abs=1e-3)
    power = np.abs(np.fft.rfft2(image, axes=(1, 2))) ** 2
    assert power[:, 1:4, 1:4].mean() > 50 * power[:, 20:30, 18:24].mean()
    assert power[:, 0, 0].max() < 1e-3  # no mean
