"""The timestep's embedding against its reference."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_runner import run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.timestep_embedding import timestep_embedding
from shaderfusion.tensor import DType

BOUNDS: dict[DType, float] = {"f32": 2e-5, "f16": 5e-4}


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("t", [0.0, 1.0, 500.5, 981.0, 999.0, 998.9375])
@pytest.mark.parametrize(
    ("C", "flip_sin_to_cos", "freq_shift"),
    [
        (2, True, 0.0),  # minimal
        (7, False, 1.0),  # odd: the last channel is 0
        (131, True, 0.5),  # more pairs than a workgroup, odd
        (320, True, 0.0),  # UNet
    ],
    ids=str,
)
def test_timestep_embedding(
    any_device: Device, C: int, flip_sin_to_cos: bool, freq_shift: float, t: float, dtype: DType
) -> None:
    timestep = np.array([t])
    spec, out = tensor_in("timestep", timestep), tensor_out("out", 1, C, dtype=dtype)
    call = timestep_embedding(spec, out, flip_sin_to_cos=flip_sin_to_cos, freq_shift=freq_shift)
    (actual,) = run_calls(any_device, call, {spec: timestep}, out)
    expected = reference.timestep_embedding(timestep, C, flip_sin_to_cos=flip_sin_to_cos, freq_shift=freq_shift)
    assert np.max(np.abs(actual - expected)) < BOUNDS[dtype]


@pytest.mark.parametrize(("C", "padding"), [(6, 2), (9, 3), (129, 3)])  # 129: a workgroup more than of pairs
def test_padding(any_device: Device, C: int, padding: int) -> None:
    timestep = np.array([981.0])
    spec, out = tensor_in("timestep", timestep), replace(tensor_out("out", 1, C + padding), padding=padding)
    call = timestep_embedding(spec, out, flip_sin_to_cos=True, freq_shift=0)
    (actual,) = run_calls(any_device, call, {spec: timestep}, out)
    expected = reference.timestep_embedding(timestep, C, flip_sin_to_cos=True, freq_shift=0)
    assert np.max(np.abs(actual[:, :C] - expected)) < BOUNDS["f32"]
    assert not actual[:, C:].any()


@pytest.mark.parametrize(
    ("N", "C", "padding"),
    [
        (6, 256, 0),  # the six time ids of SDXL
        (5, 9, 3),  # rows that end with padding
        (7, 3, 0),  # rows that no vector fits
    ],
)
def test_rows(any_device: Device, N: int, C: int, padding: int) -> None:
    numbers = np.array([1024.0, 0.0, 8191.0, 1.5, 768.0, 999.0, 13.0])[:N]
    spec, out = tensor_in("numbers", numbers), replace(tensor_out("out", N, C + padding), padding=padding)
    call = timestep_embedding(spec, out, flip_sin_to_cos=True, freq_shift=0)
    (actual,) = run_calls(any_device, call, {spec: numbers}, out)
    expected = reference.timestep_embedding(numbers, C, flip_sin_to_cos=True, freq_shift=0)
    assert np.max(np.abs(actual[:, :C] - expected)) < 4 * BOUNDS["f32"]  # the angle's error grows with the number
    assert not actual[:, C:].any()


def test_shape_errors() -> None:
    t, out = tensor_out("t", 1), tensor_out("out", 1, 8)
    with pytest.raises(ShapeError, match=r"t\[1, 2\]:f32 must be \(N,\) f32"):
        timestep_embedding(tensor_out("t", 1, 2), out, flip_sin_to_cos=True, freq_shift=0)
    for shape in ((2, 8), (8,), (1, 1)):
        with pytest.raises(ShapeError, match=r"must be \(1, C\), with C at least 2"):
            timestep_embedding(t, tensor_out("out", *shape), flip_sin_to_cos=True, freq_shift=0)
    with pytest.raises(ShapeError, match=r"freq_shift \(=4\) must be less than half of the channels \(=8\)"):
        timestep_embedding(t, out, flip_sin_to_cos=True, freq_shift=4)
    with pytest.raises(ShapeError, match=r"max_period \(=1\) must be more than 1"):
        timestep_embedding(t, out, flip_sin_to_cos=True, freq_shift=0, max_period=1)
