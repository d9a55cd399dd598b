"""Turning wgpu's errors into ours."""

import pytest
import wgpu

from shaderfusion.errors import DeviceError, DeviceLostError, GpuMemoryError, ShaderError, ShapeError
from shaderfusion.gpu.buffers import allocate
from shaderfusion.gpu.device import open_device
from shaderfusion.gpu.failures import gpu_errors
from shaderfusion.kernels.common.elementwise import add
from shaderfusion.tensor import TensorSpec


@pytest.mark.parametrize(
    ("error", "ours", "message"),
    [
        (wgpu.GPUOutOfMemoryError("no"), GpuMemoryError, r"^reading x: the device is out of memory; use a smaller"),
        (wgpu.GPUError("Not enough memory left"), GpuMemoryError, r"^reading x: the device is out of memory"),
        (wgpu.GPUInternalError("Out of Memory"), GpuMemoryError, r"^reading x: the device is out of memory"),
        (
            wgpu.GPUValidationError("Parent device is lost"),
            DeviceLostError,
            r"^reading x: the driver dropped the device",
        ),
        (wgpu.GPUError("Device was lost"), DeviceLostError, r"open it again \(Device was lost\)"),
        (wgpu.GPUValidationError("bad usage"), DeviceError, r"^reading x: bad usage$"),
        (ShapeError("ours"), ShapeError, r"^ours$"),
        (KeyError("other"), KeyError, r"other"),
    ],
    ids=repr,
)
def test_gpu_errors(error: Exception, ours: type[Exception], message: str) -> None:
    with pytest.raises(ours, match=message) as caught, gpu_errors("reading x"):
        raise error
    assert type(caught.value) is ours


def test_a_lost_device(runtime: str) -> None:
    device = open_device(runtime=runtime)
    device.handle.destroy()
    with pytest.raises(DeviceLostError, match=r"^allocating 0.0 MB for unet.x: the driver dropped the device"):
        allocate(device, 64, "unet.x")


def test_what_else_fails_is_told_in_its_own_way() -> None:
    with (
        pytest.raises(ShaderError, match=r"^X.WGSL: BAD USAGE$"),
        gpu_errors("x.wgsl", lambda s: ShaderError(s.upper())),
    ):
        raise wgpu.GPUValidationError("bad usage")
    with pytest.raises(DeviceLostError), gpu_errors("x.wgsl", ShaderError):
        raise wgpu.GPUValidationError("Parent device is lost")


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "checked"])
def test_a_device_lost_while_compiling(runtime: str, trusted: bool) -> None:
    x = TensorSpec("x", (8,), "f32", "output")
    device = open_device(runtime=runtime, trusted=trusted)
    device.handle.destroy()
    with pytest.raises(DeviceLostError, match=r"^common/elementwise.wgsl: the driver dropped the device"):
        device.pipelines.get(add(x, x, x))
