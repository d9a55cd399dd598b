"""Unfused group norm against its reference."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.baseline.group_norm_unfused import group_norm_statistics, group_norm_unfused
from shaderfusion.kernels.call import ceil_div
from shaderfusion.kernels.common.elementwise import Activation
from shaderfusion.tensor import DType

EPS = 1e-5
BOUNDS: dict[DType, float] = {"f32": 2e-6, "f16": 1e-3}

CASES: list[tuple[tuple[int, ...], int, Activation | None]] = [
    ((1, 1), 1, None),  # minimal: variance 0, so out = bias
    ((3, 5, 7, 9), 3, None),  # odd: one channel a load, a ragged last slice
    ((2, 3, 3, 12), 6, "silu"),  # a load of 4 channels straddles groups of 2
    ((1, 11, 60), 2, None),  # one spatial dimension
    ((2, 16, 16, 320), 32, "silu"),  # UNet: 10 channels a group, straddled too
    ((1, 64, 64, 128), 32, "silu"),  # decoder: few channels, many pixels
    ((2, 2, 2, 2560), 32, None),  # UNet: many channels, few pixels
]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("shape", "num_groups", "activation"), CASES, ids=str)
def test_group_norm(
    any_device: Device, shape: tuple[int, ...], num_groups: int, activation: Activation | None, dtype: DType
) -> None:
    x = np.random.default_rng(0).standard_normal(shape) + 0.5
    assert _error(any_device, x, num_groups, activation, dtype) < BOUNDS[dtype]


def test_mean_far_from_zero(any_device: Device) -> None:
    x = np.random.default_rng(1).standard_normal((2, 16, 16, 32)) + 1000  # E[x^2] - mean^2 would lose the variance
    assert _error(any_device, x, 8, None, "f32") < 3e-4


@pytest.mark.parametrize(("shape", "num_groups"), [((3, 5, 7, 9), 3), ((2, 3, 3, 12), 6)], ids=str)
def test_statistics(any_device: Device, shape: tuple[int, ...], num_groups: int) -> None:
    x = np.random.default_rng(5).standard_normal(shape) + 2
    tx = tensor_in("x", x)
    means, variances = tensor_out("mean", shape[0], num_groups), tensor_out("variance", shape[0], num_groups)
    actual = run_calls(any_device, group_norm_statistics(tx, means, variances), {tx: x}, means, variances)
    expected = reference.group_norm_statistics(x, num_groups=num_groups)
    for values, expected_values in zip(actual, expected, strict=True):
        assert relative_error(values, expected_values) < BOUNDS["f32"]


def test_folded_activation(any_device: Device) -> None:
    x, weight, bias = (np.random.default_rng(4).standard_normal(shape) for shape in ((2, 9, 24), 24, 24))
    tx, tweight, tbias = tensor_in("x", x), tensor_in("weight", weight), tensor_in("bias", bias)
    out = tensor_out("out", *x.shape)
    calls = group_norm_unfused(tx, tweight, tbias, out, num_groups=3, eps=EPS, activation="silu", fold_activation=True)
    assert [call.entry_point for call in calls][-1] == "normalize_channels"
    (actual,) = run_calls(any_device, calls, {tx: x, tweight: weight, tbias: bias}, out)
    expected = reference.group_norm_unfused(x, weight, bias, num_groups=3, eps=EPS, activation="silu")
    assert relative_error(actual, expected) < BOUNDS["f32"]


def test_grids_of_two_rows(any_device: Device) -> None:
    x, weight, bias = (np.random.default_rng(3).standard_normal(shape) for shape in ((2, 99, 24), 24, 24))
    tx, tweight, tbias = tensor_in("x", x), tensor_in("weight", weight), tensor_in("bias", bias)
    out = tensor_out("out", *x.shape)
    calls = group_norm_unfused(tx, tweight, tbias, out, num_groups=3, eps=EPS)
    # As for more workgroups than one dimension holds.
    calls = [replace(call, workgroups=(ceil_div(call.workgroups[0], 2), 2, 1)) for call in calls]
    (actual,) = run_calls(any_device, calls, {tx: x, tweight: weight, tbias: bias}, out)
    expected = reference.group_norm_unfused(x, weight, bias, num_groups=3, eps=EPS)
    assert relative_error(actual, expected) < BOUNDS["f32"]


def _error(device: Device, x: np.ndarray, num_groups: int, activation: Activation | None, dtype: DType) -> float:
    weight, bias = np.random.default_rng(2).standard_normal((2, x.shape[-1]))
    tx, tweight, tbias = (tensor_in(name, a, dtype) for name, a in [("x", x), ("weight", weight), ("bias", bias)])
    out = tensor_out("out", *x.shape, dtype=dtype)
    calls = group_norm_unfused(tx, tweight, tbias, out, num_groups=num_groups, eps=EPS, activation=activation)
    (actual,) = run_calls(device, calls, {tx: x, tweight: weight, tbias: bias}, out)
    arrays = (rounded(a, dtype) for a in (x, weight, bias))
    expected = reference.group_norm_unfused(*arrays, num_groups=num_groups, eps=EPS, activation=activation)
    return relative_error(actual, expected)


def test_large_groups_are_cut_into_slices() -> None:
    x, weight, out = tensor_out("x", 1, 512, 512, 128), tensor_out("weight", 128), tensor_out("out", 1, 512, 512, 128)
    sums, *_ = group_norm_unfused(x, weight, weight, out, num_groups=32, eps=EPS)
    assert sums.workgroups == (512, 1, 1)


def test_shape_errors_of_statistics() -> None:
    x, means = tensor_out("x", 2, 9, 320), tensor_out("mean", 2, 32)
    for wrong in (tensor_out("v", 1, 32), tensor_out("v", 2, 16), tensor_out("v", 2, 32, dtype="f16")):
        for pair in ((means, wrong), (wrong, means)):
            with pytest.raises(ShapeError, match=r"group_norm: .* and .* must be \(B, G\) f32 for x\[2, 9, 320\]:f32"):
                group_norm_statistics(x, *pair)
    with pytest.raises(ShapeError, match=r"with C a multiple of G"):
        group_norm_statistics(x, tensor_out("mean", 2, 33), tensor_out("variance", 2, 33))


def test_shape_errors() -> None:
    x, weight, out = tensor_out("x", 2, 9, 320), tensor_out("weight", 320), tensor_out("out", 2, 9, 320)
    with pytest.raises(ShapeError, match=r"group_norm: channels \(=320\) must be divisible by num_groups \(=33\)"):
        group_norm_unfused(x, weight, weight, out, num_groups=33, eps=EPS)
    with pytest.raises(ShapeError, match=r"must have one shape \(B, ..., C\)"):
        group_norm_unfused(x, weight, weight, tensor_out("out", 2, 8, 320), num_groups=32, eps=EPS)
    with pytest.raises(ShapeError, match=r"bias\[32\]:f32 must have shape \(320,\)"):
        group_norm_unfused(x, weight, tensor_out("bias", 32), out, num_groups=32, eps=EPS)
    with pytest.raises(ShapeError, match=r"bias\[320\]:f16 must have the dtype of x"):
        group_norm_unfused(x, weight, tensor_out("bias", 320, dtype="f16"), out, num_groups=32, eps=EPS)
