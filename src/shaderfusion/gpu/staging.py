"""Bytes from the host to the device, copied while the next ones are written."""

from typing import Any

import numpy as np

from shaderfusion.gpu.device import Device
from shaderfusion.gpu.failures import gpu_errors
from shaderfusion.tensor import VIEW_ALIGNMENT_BYTES

__all__ = ["Staging"]


class Staging:
    """Two buffers of `size_bytes`, a multiple of 4, in the host's memory: one is written, one copied, in turn."""

    def __init__(self, device: Device, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._device = device
        self._used_bytes = 0
        usage = "MAP_WRITE|COPY_SRC"
        with gpu_errors(f"allocating {2 * size_bytes / 1e6:.1f} MB for uploads"):
            self._written, self._copied = (
                device.handle.create_buffer(size=size_bytes, usage=usage, mapped_at_creation=True) for _ in range(2)
            )
        self._mapping: Any = None
        """Of the copied one, once the device is done with it."""

    def fits(self, size_bytes: int) -> bool:
        """Whether the buffer that is written has so many bytes left."""
        return self._used_bytes + size_bytes <= self.size_bytes

    def write(self, data: np.ndarray) -> int:
        """Writes bytes that fit. Returns where they begin, at a multiple of 256."""
        begin = self._used_bytes
        with gpu_errors("writing to the device"):
            self._written.write_mapped(data, begin)
        self._used_bytes += -(-data.nbytes // VIEW_ALIGNMENT_BYTES) * VIEW_ALIGNMENT_BYTES
        return begin

    def copy_to(self, buffer: Any) -> None:
        """Submits the copy of all that was written to the same places of a buffer. Waits for the copy before it."""
        with gpu_errors("copying to the device"):
            self._written.unmap()
            encoder = self._device.handle.create_command_encoder()
            encoder.copy_buffer_to_buffer(self._written, 0, buffer, 0, min(self._used_bytes, self.size_bytes))
            self._device.handle.queue.submit([encoder.finish()])
            if self._mapping:
                self._mapping.sync_wait()
            self._mapping = self._written.map_async("WRITE")
        self._written, self._copied = self._copied, self._written
        self._used_bytes = 0

    def close(self) -> None:
        """Frees both buffers, when the last copy is done."""
        if self._mapping:
            self._mapping.sync_wait()
        for buffer in (self._written, self._copied):
            buffer.destroy()
