"""Unfused group norm against its reference."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.baseline.group_norm_unfused import group_norm_unfused
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


def test_folded_activation(any_device: Device) -> None:
    x, weight, bias = (np.random.default_rng(4).standard_normal(shape) for shape in ((2, 9, 24), 24, 24))
    tx, tweight, tbias = tensor_in("x", x), tensor_in("weight", weight), tensor_in("bias", bias)
    out = tensor_out("out", *x.shape)
    calls = group_norm_unfused(tx, tweight, tbias, out, num_groups=3, eps=EPS, activation="silu", fold_activation=True)
    assert [call.name for call in calls][-1] == "group_norm_unfused"
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


def run(device: Device, x: np.ndarray, padding: int, **options: Any) -> tuple[np.ndarray, int]:
    """What the kernel makes of x (B, ..., C) with so many channels of zeros after its own, and the number of calls."""
    weight, bias = np.random.default_rng(2).standard_normal((2, x.shape[-1]))
    wide, wide_weight, wide_bias = (np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, padding)]) for a in (x, weight, bias))
    tx = replace(tensor_in("x", wide), padding=padding)
    tweight, tbias = tensor_in("weight", wide_weight), tensor_in("bias", wide_bias)
    out = tensor_out("out", *wide.shape)
    calls = group_norm_unfused(tx, tweight, tbias, out, num_groups=3, eps=EPS, activation="silu", **options)
    (actual,) = run_calls(device, calls, {tx: wide, tweight: wide_weight, tbias: wide_bias}, out)
    expected = reference.group_norm_unfused(x, weight, bias, num_groups=3, eps=EPS, activation="silu")
    assert (actual[..., x.shape[-1] :] == 0).all()
    assert relative_error(actual[..., : x.shape[-1]], expected) < BOUNDS["f32"]
    return actual, len(calls)


@pytest.mark.parametrize("channels", [6, 9, 15])
def test_padding_channels(any_device: Device, channels: int) -> None:
    # 2, 3 and 5 channels a group; a vector of 4 may hold channels of two groups and padding, or padding alone.
    x = np.random.default_rng(6).standard_normal((2, 5, 3, channels)) + 2
    for padding in (-channels % 4, -channels % 4 + 4):
        run(any_device, x, padding)


@pytest.mark.parametrize("fold_activation", [False, True], ids=["apart", "folded"])
@pytest.mark.parametrize("padding", [0, 4])
def test_strips(any_device: Device, padding: int, fold_activation: bool) -> None:
    # 2 images of 64 pixels of 12 or 16 channels: 3 or 4 KiB each, in ragged strips of at most 1 KiB.
    x = np.random.default_rng(7).standard_normal((2, 8, 8, 12)) + 2
    options = {"fold_activation": fold_activation}
    whole, num_calls = run(any_device, x, padding, **options)
    strips, num_strip_calls = run(any_device, x, padding, max_binding_bytes=1 << 10, **options)
    assert num_strip_calls > 3 * num_calls
    np.testing.assert_allclose(strips, whole, atol=1e-5)


def test_strips_bind_no_more_than_the_limit() -> None:
    x, weight, out = tensor_out("x", 1, 512, 512, 256), tensor_out("weight", 256), tensor_out("out", 1, 512, 512, 256)
    options = {"num_groups": 32, "eps": EPS, "activation": "silu"}
    for limit in (1 << 27, 1 << 22):
        calls = group_norm_unfused(x, weight, weight, out, max_binding_bytes=limit, **options)
        sizes = {binding.tensor.size_bytes for call in calls for binding in call.bindings}
        assert max(sizes) <= limit
    assert len(group_norm_unfused(x, weight, weight, out, max_binding_bytes=1 << 28, **options)) == 4


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
