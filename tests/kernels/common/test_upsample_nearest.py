"""Nearest-neighbour upsampling against its reference: copies, so equal to the last bit."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_runner import rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.upsample_nearest import upsample_nearest
from shaderfusion.tensor import DType

CASES = [
    ((1, 1, 1, 1), 2),  # minimal
    ((3, 5, 7, 9), 3),  # odd: one channel a load
    ((2, 3, 5, 12), 1),  # a copy
    ((2, 8, 8, 1280), 2),  # UNet
]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("shape", "scale"), CASES, ids=str)
def test_upsample_nearest(any_device: Device, shape: tuple[int, int, int, int], scale: int, dtype: DType) -> None:
    B, H, W, C = shape
    x = np.random.default_rng(0).standard_normal(shape)
    spec, out = tensor_in("x", x, dtype), tensor_out("out", B, scale * H, scale * W, C, dtype=dtype)
    (actual,) = run_calls(any_device, upsample_nearest(spec, out, scale=scale), {spec: x}, out)
    np.testing.assert_array_equal(actual, reference.upsample_nearest(rounded(x, dtype), scale=scale))


def test_grid_of_two_rows(any_device: Device) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 64))
    spec, out = tensor_in("x", x), tensor_out("out", 2, 6, 10, 64)
    call = replace(upsample_nearest(spec, out), workgroups=(8, 2, 1))  # as for more than one dimension holds
    (actual,) = run_calls(any_device, call, {spec: x}, out)
    np.testing.assert_array_equal(actual, reference.upsample_nearest(rounded(x, "f32"), scale=2))


def test_shape_errors() -> None:
    x = tensor_out("x", 1, 2, 3, 4)
    with pytest.raises(ShapeError, match=r"scale \(=0\) must be at least 1"):
        upsample_nearest(x, x, scale=0)
    with pytest.raises(ShapeError, match=r"must be \(B, H, W, C\)"):
        upsample_nearest(tensor_out("x", 2, 3, 4), x)
    for out in (tensor_out("out", 1, 4, 6, 8), tensor_out("out", 1, 4, 6, 4, dtype="f16")):
        with pytest.raises(ShapeError, match=r"must be \(1, 4, 6, 4\) f32"):
            upsample_nearest(x, out)
