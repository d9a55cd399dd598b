"""One-dispatch GEGLU against its reference and its baseline."""

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.kernels import reference
from shaderfusion.kernels.baseline.geglu_unfused import geglu_unfused
from shaderfusion.kernels.optimized.geglu import geglu
from shaderfusion.tensor import DType

CAPS: dict[DType, float] = {"f32": 2e-6, "f16": 1e-3}

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
    (fused,) = run_calls(any_device, geglu(spec, out), {spec: x}, out)
    (unfused,) = run_calls(any_device, geglu_unfused(spec, out), {spec: x}, out)
    expected = reference.geglu(rounded(x, dtype))
    error = relative_error(fused, expected)
    assert error < CAPS[dtype]
    assert error <= 2 * relative_error(unfused, expected) + 1e-7


def test_one_dispatch_without_tensors_between() -> None:
    x, out = tensor_out("x", 2, 16, 2560), tensor_out("out", 2, 16, 1280)
    assert plan_memory([geglu(x, out)]).total_bytes == 0
    unfused = geglu_unfused(x, out)
    assert len(unfused) == 3
    assert plan_memory(unfused).total_bytes == 3 * out.size_bytes


def test_shape_errors() -> None:
    with pytest.raises(ShapeError, match=r"geglu: channels \(=7\) of x\[2, 7\]:f32 must be even"):
        geglu(tensor_out("x", 2, 7), tensor_out("out", 2, 3))
