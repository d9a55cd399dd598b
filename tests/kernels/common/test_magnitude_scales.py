"""What brings channels to given norms, against the reference."""

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.magnitude_scales import magnitude_scales
from shaderfusion.tensor import DType, TensorSpec

SHAPES = [
    (1, 1, 1),  # one value
    (1, 5, 63),  # rows, of one value less than the lanes of a workgroup
    (7, 10, 1),  # columns
    (12, 3, 9),  # input channels of filters
    (1, 3, 2880),  # rows of the UNet's filters: many values a lane
]


def run(
    device: Device, x: np.ndarray, before: np.ndarray, dtype: DType = "f32"
) -> tuple[list[np.ndarray], tuple[np.ndarray, ...]]:
    """Squares and scales, and what they should be."""
    magnitudes = 1 + np.arange(x.shape[1]) / 4
    tx, tm, squares = tensor_in("x", x, dtype), tensor_in("m", magnitudes), tensor_in("squares", before)
    scales = tensor_out("scales", *magnitudes.shape)
    call = magnitude_scales(tx, tm, squares, scales)
    actual = run_calls(device, call, {tx: x, tm: magnitudes, squares: before}, squares, scales)
    return actual, reference.magnitude_scales(rounded(x, dtype), magnitudes, rounded(before, "f32"))


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_magnitude_scales(any_device: Device, shape: tuple[int, int, int], dtype: DType) -> None:
    rng = np.random.default_rng(0)
    for before in (np.zeros(shape[1]), rng.random(shape[1])):  # of the first slice of a weight, and of another
        for actual, expected in zip(*run(any_device, rng.standard_normal(shape), before, dtype), strict=True):
            assert relative_error(actual, expected) < 1e-6


def test_a_channel_of_zeros(any_device: Device) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 8))
    x[:, 1] = 0
    (_, scales), (_, expected) = run(any_device, x, np.zeros(3))
    assert scales[1] == 0
    assert relative_error(scales, expected) < 1e-6


def test_channels_must_agree() -> None:
    four, five = (TensorSpec("m", (size,), "f32") for size in (4, 5))
    with pytest.raises(ShapeError, match=r"m\[5\]:f32 must be f32, of the 4 channels"):
        magnitude_scales(TensorSpec("x", (1, 4, 2), "f32"), four, five, four)
