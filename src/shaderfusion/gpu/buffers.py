"""GPU memory: allocate, write, read back. Every error names the tensor and its size."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from shaderfusion.errors import DeviceLimitError, ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.gpu.failures import gpu_errors
from shaderfusion.tensor import DType, TensorSpec

__all__ = ["NUMPY_DTYPES", "allocate", "download", "download_all", "start_download", "upload"]

NUMPY_DTYPES: dict[DType, Any] = {"f16": np.float16, "f32": np.float32, "u32": np.uint32}

_USAGE = "STORAGE|COPY_DST|COPY_SRC"


def allocate(device: Device, size_bytes: int, name: str) -> Any:
    """A storage buffer for the tensor `name`; DeviceLimitError or GpuMemoryError where it cannot be had."""
    limit = device.capabilities.max_buffer_bytes
    if size_bytes > limit:
        raise DeviceLimitError(
            f"{name}: {size_bytes / 1e6:.1f} MB is over what a buffer of {device.info.name} may take "
            f"({limit / 1e6:.1f} MB); use a smaller size or batch, or another device or dtype"
        )
    with gpu_errors(f"allocating {size_bytes / 1e6:.1f} MB for {name}"):
        return device.handle.create_buffer(label=name, size=size_bytes, usage=_USAGE)


def upload(device: Device, buffer: Any, tensor: TensorSpec, array: np.ndarray) -> None:
    """Writes an array of the tensor's shape without its padding channels, converted to its dtype; these get zeros.

    Values over the range of the dtype become infinite, as they do on a GPU.
    """
    shape = (*tensor.shape[:-1], tensor.channels)
    if tuple(array.shape) != shape:
        raise ShapeError(f"{tensor.name}: got an array of shape {array.shape}, must be {shape}")
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(array, NUMPY_DTYPES[tensor.dtype])
    if tensor.padding:
        data = np.pad(data, [*[(0, 0)] * (data.ndim - 1), (0, tensor.padding)])
    if data.nbytes % 4:  # WebGPU copies whole 4-byte words; allocations are rounded up to 16
        data = np.append(data.reshape(-1), np.zeros(1, data.dtype))
    with gpu_errors(f"writing {tensor.name}"):
        device.handle.queue.write_buffer(buffer, 0, data)


def download(device: Device, buffer: Any, tensor: TensorSpec) -> np.ndarray:
    """Waits for the GPU and reads the tensor back, in its own shape, without padding channels, and dtype."""
    return download_all(device, [(buffer, tensor)])[0]


def download_all(device: Device, tensors: Sequence[tuple[Any, TensorSpec]]) -> list[np.ndarray]:
    """Waits for the GPU and reads tensors from their buffers back, each as `download` does, in one transfer."""
    return start_download(device, tensors)()


def start_download(device: Device, tensors: Sequence[tuple[Any, TensorSpec]]) -> Callable[[], list[np.ndarray]]:
    """What `download_all` returns, later: tensors as they are after what was submitted so far.

    Until the function that it gives is called, which waits for that much, more may be submitted.
    """
    names = ", ".join(tensor.name for _, tensor in tensors)
    offsets = [0, *accumulate(tensor.size_bytes for _, tensor in tensors)]
    with gpu_errors(f"reading {names}"):
        usage = "COPY_DST|MAP_READ"
        staging: Any = device.handle.create_buffer(label="read back", size=offsets[-1], usage=usage)
        encoder = device.handle.create_command_encoder()
        for (buffer, tensor), offset in zip(tensors, offsets, strict=False):
            encoder.copy_buffer_to_buffer(buffer, 0, staging, offset, tensor.size_bytes)
        device.handle.queue.submit([encoder.finish()])
        mapping = staging.map_async("READ")

    def finish() -> list[np.ndarray]:
        with gpu_errors(f"reading {names}"):
            mapping.sync_wait()
            raw = staging.read_mapped()
            staging.destroy()
        return [
            np.frombuffer(raw, NUMPY_DTYPES[tensor.dtype], tensor.size, offset).reshape(tensor.shape)[
                ..., : tensor.channels
            ]
            for (_, tensor), offset in zip(tensors, offsets, strict=False)
        ]

    return finish
