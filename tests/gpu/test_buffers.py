"""Transfers, limits and the errors of allocation."""

import numpy as np
import pytest
import wgpu

from shaderfusion.errors import DeviceLimitError, GpuMemoryError, ShapeError
from shaderfusion.gpu.buffers import NUMPY_DTYPES, allocate, download, upload
from shaderfusion.gpu.device import Device
from shaderfusion.tensor import DType, TensorSpec


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize(
    "shape", [(1,), (3,), (8,), (3, 5), (2, 3, 7)], ids=str
)  # odd numbers of f16 end in half a word
def test_round_trip(device: Device, shape: tuple[int, ...], dtype: DType) -> None:
    spec = TensorSpec("x", shape, dtype)
    buffer = allocate(device, spec.size_bytes, spec.name)
    array = np.random.default_rng(0).integers(0, 1000, shape).astype(np.float64)
    upload(device, buffer, spec, array)
    actual = download(device, buffer, spec)
    assert (actual.shape, actual.dtype) == (shape, NUMPY_DTYPES[dtype])
    np.testing.assert_array_equal(actual, array)
    actual += 1  # a copy that the caller owns


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_padding_channels_hold_zeros_and_are_not_read(device: Device, dtype: DType) -> None:
    spec, whole = TensorSpec("x", (2, 3, 8), dtype, padding=3), TensorSpec("x", (2, 3, 8), dtype)
    buffer = allocate(device, spec.size_bytes, spec.name)
    upload(device, buffer, whole, np.full(whole.shape, np.nan))
    array = np.arange(30.0).reshape(2, 3, 5)
    upload(device, buffer, spec, array)
    np.testing.assert_array_equal(download(device, buffer, spec), array)
    assert not download(device, buffer, whole)[..., 5:].any()
    with pytest.raises(ShapeError, match=r"got an array of shape \(2, 3, 8\), must be \(2, 3, 5\)"):
        upload(device, buffer, spec, np.zeros(whole.shape))


def test_strided_arrays(device: Device) -> None:
    spec = TensorSpec("x", (3, 4), "f32")
    buffer = allocate(device, spec.size_bytes, spec.name)
    array = np.arange(24.0).reshape(4, 6).T[::2]
    upload(device, buffer, spec, array)
    np.testing.assert_array_equal(download(device, buffer, spec), array)


def test_a_buffer_larger_than_the_tensor(device: Device) -> None:
    large, small = TensorSpec("large", (64,), "f32"), TensorSpec("small", (3,), "f16")
    buffer = allocate(device, large.size_bytes, large.name)
    upload(device, buffer, large, np.ones(64))
    upload(device, buffer, small, np.arange(3))
    np.testing.assert_array_equal(download(device, buffer, small), [0, 1, 2])
    assert np.all(download(device, buffer, large)[2:] == 1)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (6,), (3, 2, 1)])
def test_shape_mismatch(device: Device, shape: tuple[int, ...]) -> None:
    spec = TensorSpec("unet.x", (3, 2), "f32")
    with pytest.raises(ShapeError, match=r"unet.x: got an array of shape \(.*\), must be \(3, 2\)"):
        upload(device, None, spec, np.zeros(shape))


def test_over_the_limit(device: Device) -> None:
    limit = device.capabilities.max_buffer_bytes
    with pytest.raises(DeviceLimitError) as caught:
        allocate(device, limit + 16, "unet.down_blocks.0.out")
    message = str(caught.value)
    assert message.startswith(f"unet.down_blocks.0.out: {(limit + 16) / 1e6:.1f} MB is over what a buffer ")
    assert f"({limit / 1e6:.1f} MB)" in message
    assert message.endswith("use a smaller size or batch, or another device or dtype")


def test_out_of_memory(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    # Raised by hand: to fill a software adapter's memory would fill the machine's.
    def fail(**options: object) -> None:
        raise wgpu.GPUOutOfMemoryError("Not enough memory left.")

    monkeypatch.setattr(device.handle, "create_buffer", fail)
    with pytest.raises(
        GpuMemoryError, match=r"^allocating 2.0 MB for unet.out: the device is out of memory; use a smaller"
    ):
        allocate(device, 2_000_000, "unet.out")
