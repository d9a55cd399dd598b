"""One-dispatch group norm against its reference and its baseline."""

from typing import Any

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.kernels import reference
from shaderfusion.kernels.baseline.group_norm_unfused import group_norm_unfused
from shaderfusion.kernels.common.elementwise import Activation
from shaderfusion.kernels.optimized.group_norm import group_norm
from shaderfusion.tensor import DType

EPS = 1e-5
CAPS: dict[DType, float] = {"f32": 2e-6, "f16": 1e-3}

CASES: list[tuple[tuple[int, ...], int, Activation | None]] = [
    ((1, 1), 1, None),  # minimal: variance 0, so out = bias
    ((3, 5, 7, 9), 3, None),  # odd: one channel a load, fewer values than lanes
    ((2, 3, 3, 12), 6, "silu"),  # two channels a load
    ((2, 16, 16, 320), 32, "silu"),  # UNet: 10 channels a group
    ((1, 64, 64, 128), 32, "silu"),  # decoder: few channels, many pixels
    ((2, 2, 2, 2560), 32, None),  # UNet: many channels, few pixels
]


def _errors(
    device: Device, x: np.ndarray, num_groups: int, activation: Activation | None, dtype: DType
) -> tuple[float, float]:
    """Of the one dispatch, and of its baseline."""
    weight, bias = np.random.default_rng(2).standard_normal((2, x.shape[-1]))
    arrays = {tensor_in(name, a, dtype): a for name, a in [("x", x), ("weight", weight), ("bias", bias)]}
    out = tensor_out("out", *x.shape, dtype=dtype)
    options: dict[str, Any] = {"num_groups": num_groups, "eps": EPS, "activation": activation}
    expected = reference.group_norm(*(rounded(a, dtype) for a in arrays.values()), **options)
    tx, tweight, tbias = arrays
    (fused,) = run_calls(device, group_norm(tx, tweight, tbias, out, **options), arrays, out)
    (unfused,) = run_calls(device, group_norm_unfused(tx, tweight, tbias, out, **options), arrays, out)
    return relative_error(fused, expected), relative_error(unfused, expected)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("shape", "num_groups", "activation"), CASES, ids=str)
def test_group_norm(
    any_device: Device, shape: tuple[int, ...], num_groups: int, activation: Activation | None, dtype: DType
) -> None:
    x = np.random.default_rng(0).standard_normal(shape) + 0.5
    fused, unfused = _errors(any_device, x, num_groups, activation, dtype)
    assert fused < CAPS[dtype]
    assert fused <= 2 * unfused + 1e-7


@pytest.mark.parametrize("num_groups", [8, 1], ids=["cached", "uncached"])
def test_shares(any_device: Device, num_groups: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 64, 32))
    arrays = {tensor_in("x", x): x, **{tensor_in(name, x[0, 0, 0]): x[0, 0, 0] for name in ("weight", "bias")}}
    out = tensor_out("out", *x.shape)
    options: dict[str, Any] = {"num_groups": num_groups, "eps": EPS, "workgroup_size": 64}
    tx, weight, bias = arrays
    whole, shared = (group_norm(tx, weight, bias, out, **options, shares=shares) for shares in (1, 2))
    assert ("CACHED" in shared.constants) is (num_groups == 8)
    assert shared.workgroups == (num_groups, 2, 2)
    (actual,), (expected,) = (run_calls(any_device, call, arrays, out) for call in (shared, whole))
    np.testing.assert_array_equal(actual, expected)


def test_too_many_channels_for_a_workgroup() -> None:
    x, weight, out = tensor_out("x", 1, 4, 132), tensor_out("weight", 132), tensor_out("out", 1, 4, 132)
    with pytest.raises(ShapeError, match=r"channels of a group \(=132\) must be at most 128, 4 for each of"):
        group_norm(x, weight, weight, out, num_groups=1, eps=EPS, workgroup_size=32)


def test_mean_far_from_zero(device: Device) -> None:
    x = np.random.default_rng(1).standard_normal((2, 16, 16, 32)) + 1000  # E[x^2] - mean^2 would lose the variance
    assert _errors(device, x, 8, None, "f32")[0] < 3e-4


def test_one_dispatch_without_tensors_between() -> None:
    x, weight, bias = tensor_out("x", 2, 64, 64, 320), tensor_out("weight", 320), tensor_out("bias", 320)
    out = tensor_out("out", 2, 64, 64, 320)
    fused = group_norm(x, weight, bias, out, num_groups=32, eps=EPS, activation="silu")
    assert fused.workgroups == (32, 2, 1)
    assert plan_memory([fused]).total_bytes == 0
    unfused = group_norm_unfused(x, weight, bias, out, num_groups=32, eps=EPS, activation="silu")
    assert len(unfused) == 4
    assert plan_memory(unfused).total_bytes > out.size_bytes


def test_shape_errors() -> None:
    x, c = tensor_out("x", 2, 4, 320), tensor_out("c", 320)
    with pytest.raises(ShapeError, match=r"group_norm: channels \(=320\) must be divisible by num_groups \(=33\)"):
        group_norm(x, c, c, tensor_out("out", 2, 4, 320), num_groups=33, eps=EPS)
