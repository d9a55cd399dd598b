"""Unfused GEGLU against its reference."""

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.baseline.geglu_unfused import geglu_unfused
from shaderfusion.tensor import DType

BOUNDS: dict[DType, float] = {"f32": 2e-6, "f16": 1e-3}

SHAPES = [
    (1, 1, 2),  # minimal
    (3, 5, 14),  # odd: one channel a load
    (2, 7, 24),  # a ragged last workgroup
    (2, 16, 2560),  # UNet
]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_geglu(any_device: Device, shape: tuple[int, ...], dtype: DType) -> None:
    x = 2 * np.random.default_rng(0).standard_normal(shape)
    spec, out = tensor_in("x", x, dtype), tensor_out("out", *shape[:-1], shape[-1] // 2, dtype=dtype)
    (actual,) = run_calls(any_device, geglu_unfused(spec, out), {spec: x}, out)
    assert relative_error(actual, reference.geglu_unfused(rounded(x, dtype))) < BOUNDS[dtype]


def test_shape_errors() -> None:
    with pytest.raises(ShapeError, match=r"geglu: channels \(=7\) of x\[2, 7\]:f32 must be even"):
        geglu_unfused(tensor_out("x", 2, 7), tensor_out("out", 2, 3))
    for out in (tensor_out("out", 2, 8), tensor_out("out", 2, 4, dtype="f16")):
        with pytest.raises(ShapeError, match=r"must be \(2, 4\) f32, half the channels of x"):
            geglu_unfused(tensor_out("x", 2, 8), out)
