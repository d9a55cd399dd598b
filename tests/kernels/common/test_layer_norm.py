"""Layer norm against its reference."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.layer_norm import layer_norm
from shaderfusion.tensor import DType

EPS = 1e-5
BOUNDS: dict[DType, float] = {"f32": 2e-6, "f16": 5e-4}

SHAPES = [
    (1, 1, 1),  # minimal: variance 0, so out = bias
    (3, 5, 7),  # odd: one channel a load, more rows than lanes' rows
    (1, 6, 36),  # 9 chunks of 4 for 32 lanes, a ragged last workgroup
    (2, 77, 768),  # CLIP
    (2, 16, 320),  # UNet, highest and lowest resolution
    (1, 3, 1280),
]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_norm(any_device: Device, shape: tuple[int, ...], dtype: DType) -> None:
    assert _error(any_device, np.random.default_rng(0).standard_normal(shape) + 0.5, dtype) < BOUNDS[dtype]


def test_grid_of_two_rows(any_device: Device) -> None:
    x = np.random.default_rng(1).standard_normal((1, 4 * 5, 8))  # as for more workgroups than one dimension holds
    assert _error(any_device, x, "f32", workgroups=(3, 2, 1)) < BOUNDS["f32"]


def test_mean_far_from_zero(any_device: Device) -> None:
    x = np.random.default_rng(2).standard_normal((1, 9, 320)) + 1000  # E[x^2] - mean^2 would lose the variance
    assert _error(any_device, x, "f32") < 1e-4


@pytest.mark.parametrize(("channels", "row_lanes"), [(5, 32), (10, 32), (31, 8)])
def test_padding(any_device: Device, channels: int, row_lanes: int) -> None:
    rng = np.random.default_rng(4)
    padding = -channels % 4
    x = rng.standard_normal((2, 5, channels)) + 3  # a mean that zeros would move
    weight, bias = rng.standard_normal((2, channels))
    wide = [np.pad(a, [*[(0, 0)] * (a.ndim - 1), (0, padding)]) for a in (x, weight, bias)]
    tx, tweight, tbias = (tensor_in(name, a) for name, a in zip(("x", "weight", "bias"), wide, strict=True))
    tx, out = replace(tx, padding=padding), replace(tensor_out("out", *wide[0].shape), padding=padding)
    call = layer_norm(tx, tweight, tbias, out, eps=EPS, row_lanes=row_lanes)
    (actual,) = run_calls(any_device, call, dict(zip((tx, tweight, tbias), wide, strict=True)), out)
    expected = reference.layer_norm(*(rounded(a, "f32") for a in (x, weight, bias)), eps=EPS)
    assert relative_error(actual[..., :channels], expected) < BOUNDS["f32"]
    assert not actual[..., channels:].any()


def _error(device: Device, x: np.ndarray, dtype: DType, workgroups: tuple[int, int, int] | None = None) -> float:
    weight, bias = np.random.default_rng(3).standard_normal((2, x.shape[-1]))
    tx, tweight, tbias = (tensor_in(name, a, dtype) for name, a in [("x", x), ("weight", weight), ("bias", bias)])
    out = tensor_out("out", *x.shape, dtype=dtype)
    call = layer_norm(tx, tweight, tbias, out, eps=EPS)
    if workgroups:
        call = replace(call, workgroups=workgroups)
    (actual,) = run_calls(device, call, {tx: x, tweight: weight, tbias: bias}, out)
    return relative_error(actual, reference.layer_norm(*(rounded(a, dtype) for a in (x, weight, bias)), eps=EPS))


def test_shape_errors() -> None:
    x, weight, out = tensor_out("x", 2, 3, 8), tensor_out("weight", 8), tensor_out("out", 2, 3, 8)
    with pytest.raises(ShapeError, match=r"layer_norm: out\[2, 3, 4\]:f32 must have the shape of x"):
        layer_norm(x, weight, weight, tensor_out("out", 2, 3, 4), eps=EPS)
    with pytest.raises(ShapeError, match=r"must have the shape of x.*, and its padding"):
        layer_norm(replace(x, padding=2), weight, weight, out, eps=EPS)
    with pytest.raises(ShapeError, match=r"layer_norm: bias\[4\]:f32 must have shape \(8,\), the channels of x"):
        layer_norm(x, weight, tensor_out("bias", 4), out, eps=EPS)
    with pytest.raises(ShapeError, match=r"layer_norm: out\[2, 3, 8\]:f16 must have the dtype of x"):
        layer_norm(x, weight, weight, tensor_out("out", 2, 3, 8, dtype="f16"), eps=EPS)
