"""Softmax over rows against its reference."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.baseline.softmax_unfused import softmax_unfused
from shaderfusion.tensor import DType

BOUNDS: dict[DType, float] = {"f32": 2e-6, "f16": 5e-4}

SHAPES = [
    ((1, 1), 1),  # minimal
    ((3, 5, 7), 7),  # odd: one column a load, a ragged last workgroup
    ((2, 3, 9, 80), 77),  # cross attention: the last load of a row is part padding
    ((7, 516), 515),  # just long enough for a workgroup a row
    ((2, 77, 80), 77),  # CLIP
    ((3, 4096), 4096),  # self attention of the UNet and of the decoder
    ((1, 16384), 16384),
]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("shape", "num_columns"), SHAPES, ids=str)
def test_softmax(any_device: Device, shape: tuple[int, ...], num_columns: int, causal: bool, dtype: DType) -> None:
    x = 3 * np.random.default_rng(0).standard_normal(shape)
    x[..., num_columns:] = np.nan  # padding may hold anything
    actual, expected = _run(any_device, x, num_columns, causal, dtype)
    assert relative_error(actual, expected) < BOUNDS[dtype]
    assert np.all(actual[expected == 0] == 0)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_outliers(any_device: Device, dtype: DType) -> None:
    x = np.random.default_rng(1).standard_normal((4, 300))
    x[0, 17] = 1e3  # exp overflows without the subtracted maximum
    x[1, [3, 299]] = 1e3
    x[2] -= 1e3  # and underflows in every column
    x[3, ::2] = -6e4
    actual, expected = _run(any_device, x, 300, False, dtype)
    assert np.max(np.abs(actual - expected)) < BOUNDS[dtype]


def test_grid_of_two_rows(any_device: Device) -> None:
    x = np.random.default_rng(2).standard_normal((4 * 5, 8))
    spec, out = tensor_in("x", x), tensor_out("out", *x.shape)
    call = softmax_unfused(spec, out, num_columns=8)
    call = replace(call, workgroups=(3, 2, 1))  # as for more workgroups than one dimension holds
    (actual,) = run_calls(any_device, call, {spec: x}, out)
    assert relative_error(actual, reference.softmax_unfused(rounded(x, "f32"), num_columns=8)) < BOUNDS["f32"]


def _run(device: Device, x: np.ndarray, num_columns: int, causal: bool, dtype: DType) -> tuple[np.ndarray, np.ndarray]:
    spec, out = tensor_in("x", x, dtype), tensor_out("out", *x.shape, dtype=dtype)
    call = softmax_unfused(spec, out, num_columns=num_columns, causal=causal)
    (actual,) = run_calls(device, call, {spec: x}, out)
    return actual, reference.softmax_unfused(rounded(x, dtype), num_columns=num_columns, causal=causal)


def test_shape_errors() -> None:
    x = tensor_out("x", 2, 3, 8)
    with pytest.raises(ShapeError, match=r"must have one dtype and one shape \(..., N, M\)"):
        softmax_unfused(x, tensor_out("out", 2, 3, 4), num_columns=4)
    with pytest.raises(ShapeError, match=r"must have one dtype and one shape \(..., N, M\)"):
        softmax_unfused(x, tensor_out("out", 2, 3, 8, dtype="f16"), num_columns=8)
    for num_columns in (0, 9):
        with pytest.raises(ShapeError, match=rf"softmax: num_columns \(={num_columns}\) must be from 1 to 8"):
            softmax_unfused(x, tensor_out("out", 2, 3, 8), num_columns=num_columns)
