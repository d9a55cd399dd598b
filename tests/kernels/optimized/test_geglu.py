"""GEGLU in one dispatch, and as the epilogue of its projection, against the reference and what each replaces."""

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.kernels import reference
from shaderfusion.kernels.baseline.geglu_unfused import geglu_unfused
from shaderfusion.kernels.common.matmul import Epilogue, matmul
from shaderfusion.kernels.optimized.geglu import geglu, geglu_linear
from shaderfusion.kernels.tiles import Tile
from shaderfusion.tensor import DType, TensorSpec

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


SMALL = Tile(16, 16, 8, thread_m=2)
PAIRS = Tile(16, 16, 16, thread_m=2, pairs=True)
FOUR = Tile(16, 32, 16, thread_m=2, thread_n4=4)  # two vectors of a in a thread

LINEAR = [
    ((1, 4), 4),  # minimal: half of the first tile's places for a stay empty
    ((2, 9, 20), 20),  # ragged rows, K and columns: the last tile has 4 of a, and some of b beyond the end
    ((32, 40), 48),  # whole tiles, several turns of K
]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("tile", [SMALL, PAIRS, FOUR], ids=["tile", "pairs", "four"])
@pytest.mark.parametrize(("shape", "channels"), LINEAR, ids=str)
def test_geglu_linear(any_device: Device, tile: Tile, shape: tuple[int, ...], channels: int, dtype: DType) -> None:
    fused, unfused = _linear_errors(any_device, shape, channels, dtype, tile)
    assert fused < (2e-3 if tile.pairs and dtype == "f16" else CAPS[dtype])
    assert fused <= 2 * unfused + 1e-7


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_geglu_linear_by_its_own_tile(device: Device, dtype: DType) -> None:
    # A ragged second tile each way: 72 rows, and 68 channels, which are 64 and 4.
    fused, unfused = _linear_errors(device, (72, 36), 68, dtype, None)
    assert fused < CAPS[dtype]
    assert fused <= 2 * unfused + 1e-7


def _linear_errors(
    device: Device, shape: tuple[int, ...], channels: int, dtype: DType, tile: Tile | None
) -> tuple[float, float]:
    """Of the epilogue, and of the product and the gate as two dispatches."""
    rng = np.random.default_rng(1)
    x, weight = 2 * rng.standard_normal(shape), shape[-1] ** -0.5 * rng.standard_normal((shape[-1], 2 * channels))
    bias = rng.standard_normal(2 * channels)
    arrays = {"x": x, "weight": weight, "bias": bias}
    tx, tw, tb = (tensor_in(name, array, dtype) for name, array in arrays.items())
    out = tensor_out("out", *shape[:-1], channels, dtype=dtype)
    wide = TensorSpec("wide", (*shape[:-1], 2 * channels), dtype)
    fused = geglu_linear(tx, tw, tb, out, tile=tile)
    unfused = (*matmul(tx, tw, wide, Epilogue(bias=tb), tile=tile, num_splits=1), geglu(wide, out))
    expected = reference.geglu_linear(*(rounded(array, dtype) for array in arrays.values()))
    inputs = {tx: x, tw: weight, tb: bias}
    errors = [relative_error(run_calls(device, calls, inputs, out)[0], expected) for calls in (fused, unfused)]
    return errors[0], errors[1]


def test_geglu_linear_is_one_dispatch_without_tensors_between() -> None:
    x, weight, bias = tensor_out("x", 2, 16, 320), tensor_out("weight", 320, 2560), tensor_out("bias", 2560)
    out = tensor_out("out", 2, 16, 1280)
    call = geglu_linear(x, weight, bias, out)
    assert [binding.tensor for binding in call.bindings] == [x, weight, out, bias]
    assert call.workgroups == (20, 1, 1)  # tiles of 64 x 128, which write 64 columns of out
    assert plan_memory([call]).total_bytes == 0


def test_geglu_linear_errors() -> None:
    x, weight, bias, out = (
        tensor_out(name, *shape) for name, *shape in (("x", 3, 8), ("w", 8, 24), ("b", 24), ("out", 3, 12))
    )
    for wrong in ((3, 24), (4, 12)):
        with pytest.raises(
            ShapeError, match=r"geglu_linear: x\[3, 8\]:f32 times w\[8, 24\]:f32 must be twice as wide as out\["
        ):
            geglu_linear(x, weight, bias, tensor_out("out", *wrong))
    with pytest.raises(ShapeError, match=r"geglu_linear: C \(=6\) must be a multiple of 4; pad"):
        geglu_linear(x, tensor_out("w", 8, 12), bias, tensor_out("out", 3, 6))
    with pytest.raises(ShapeError, match=r"matmul: bias b\[12\]:f32 must have shape \(24,\)"):
        geglu_linear(x, weight, tensor_out("b", 12), out)
    with pytest.raises(ShapeError, match=r"geglu_linear: Tile\(.*thread_n4=1.* must have an even thread_n4"):
        geglu_linear(x, weight, bias, out, tile=Tile(16, 16, 8, thread_m=2, thread_n4=1))
