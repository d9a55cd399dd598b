"""Elementwise kernels against their reference."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.elementwise import Activation, activate, add, affine, multiply
from shaderfusion.tensor import DType

# One value, one less and one more than the values of a workgroup, and many workgroups.
SIZES = [(1,), (7, 73), (3, 171), (70, 64, 64)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_add(any_device: Device, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, *shape))
    ta, tb, out = tensor_in("a", a), tensor_in("b", b), tensor_out("out", *shape)
    (actual,) = run_calls(any_device, add(ta, tb, out), {ta: a, tb: b}, out)
    assert relative_error(actual, reference.add(rounded(a, "f32"), rounded(b, "f32"))) < 1e-6


def test_grid_of_two_rows(any_device: Device) -> None:
    a, b = np.random.default_rng(1).standard_normal((2, 9, 512))
    ta, tb, out = tensor_in("a", a), tensor_in("b", b), tensor_out("out", 9, 512)
    call = replace(add(ta, tb, out), workgroups=(5, 2, 1))  # as for more workgroups than one dimension holds
    (actual,) = run_calls(any_device, call, {ta: a, tb: b}, out)
    assert relative_error(actual, reference.add(rounded(a, "f32"), rounded(b, "f32"))) < 1e-6


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_multiply(any_device: Device, dtype: DType) -> None:
    a, b = np.random.default_rng(1).standard_normal((2, 3, 171))
    ta, tb, out = tensor_in("a", a, dtype), tensor_in("b", b, dtype), tensor_out("out", 3, 171, dtype=dtype)
    (actual,) = run_calls(any_device, multiply(ta, tb, out), {ta: a, tb: b}, out)
    bounds: dict[DType, float] = {"f32": 1e-6, "f16": 5e-4}
    assert relative_error(actual, reference.multiply(rounded(a, dtype), rounded(b, dtype))) < bounds[dtype]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("scale", "shift"), [(2.0, -1.0), (1 / 3, 0.0)])
def test_affine(any_device: Device, scale: float, shift: float, dtype: DType) -> None:
    x = np.random.default_rng(2).standard_normal((3, 171))
    spec, out = tensor_in("x", x, dtype), tensor_out("out", 3, 171, dtype=dtype)
    (actual,) = run_calls(any_device, affine(spec, out, scale=scale, shift=shift), {spec: x}, out)
    bounds: dict[DType, float] = {"f32": 1e-6, "f16": 5e-4}
    assert relative_error(actual, reference.affine(rounded(x, dtype), scale=scale, shift=shift)) < bounds[dtype]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "quick_gelu", "relu", "tanh"])
def test_activate(any_device: Device, activation: Activation, dtype: Literal["f32", "f16"]) -> None:
    largest = 6e4 if activation in ("relu", "tanh") else 60.0  # the others' references overflow
    x = np.concatenate([np.linspace(-12, 12, 997), [0.0, -largest, largest]])  # the tails must not become NaN
    spec, out = tensor_in("x", x, dtype), tensor_out("out", *x.shape, dtype=dtype)
    (actual,) = run_calls(any_device, activate(spec, out, activation=activation), {spec: x}, out)
    expected = reference.activate(rounded(x, dtype), activation=activation)
    bounds: dict[DType, float] = {"f32": 2e-6, "f16": 5e-4}
    assert np.max(np.abs(actual - expected) / np.maximum(1, np.abs(expected))) < bounds[dtype]


def test_shapes_must_agree() -> None:
    with pytest.raises(ShapeError, match="must have one shape"):
        add(tensor_out("a", 2, 3), tensor_out("b", 3, 2), tensor_out("out", 2, 3))
    with pytest.raises(ShapeError, match="must have one shape and dtype"):
        activate(tensor_out("x", 2, 3), tensor_out("out", 2, 3, dtype="f16"), activation="silu")
