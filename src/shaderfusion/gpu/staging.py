"""Bytes from the host to the device, copied while the next ones are written."""

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from shaderfusion.gpu.device import Device
from shaderfusion.gpu.failures import gpu_errors
from shaderfusion.tensor import VIEW_ALIGNMENT_BYTES

__all__ = ["Staging", "Write"]

_CHUNK_BYTES = 2 << 20
"""What is more than that is written in such pieces by several threads, while this one goes on."""
_MAX_WRITERS = 4


class Write(NamedTuple):
    """Bytes in the buffer that is written, and the buffer of the device to whose start they go."""

    begin: int
    size_bytes: int
    to: Any


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
            self._memory = _mapped_memory(self._written)
        self._mapping: Any = None
        """Of the copied one, once the device is done with it."""
        self._writers = ThreadPoolExecutor(min(_MAX_WRITERS, os.cpu_count() or 1))
        self._writing: list[Future[None]] = []

    def fits(self, size_bytes: int) -> bool:
        """Whether the buffer that is written has so many bytes left."""
        return self._used_bytes + size_bytes <= self.size_bytes

    def write(self, data: np.ndarray) -> int:
        """Writes bytes that fit, and which stay as they are until `copy_to`. Returns where, at a multiple of 256."""
        begin = self._used_bytes
        memory = self._memory[begin : begin + data.size]
        if data.size <= _CHUNK_BYTES:
            np.copyto(memory, data)
        else:
            for first in range(0, data.size, _CHUNK_BYTES):
                chunk = slice(first, first + _CHUNK_BYTES)
                self._writing.append(self._writers.submit(np.copyto, memory[chunk], data[chunk]))
        self._used_bytes += -(-data.nbytes // VIEW_ALIGNMENT_BYTES) * VIEW_ALIGNMENT_BYTES
        return begin

    def copy_to(self, buffer: Any, writes: Iterable[Write] = ()) -> None:
        """Submits the copy of all that was written to the same places of a buffer, and of some to their own.

        Waits for the copy before it.
        """
        self._finish_writing()
        with gpu_errors("copying to the device"):
            self._written.unmap()
            encoder = self._device.handle.create_command_encoder()
            encoder.copy_buffer_to_buffer(self._written, 0, buffer, 0, min(self._used_bytes, self.size_bytes))
            for begin, size_bytes, to in writes:
                encoder.copy_buffer_to_buffer(self._written, begin, to, 0, size_bytes)
            self._device.handle.queue.submit([encoder.finish()])
            if self._mapping:
                self._mapping.sync_wait()
            self._mapping = self._written.map_async("WRITE")
            self._written, self._copied = self._copied, self._written
            self._memory = _mapped_memory(self._written)
        self._used_bytes = 0

    def _finish_writing(self) -> None:
        for writing in self._writing:
            writing.result()
        self._writing = []

    def close(self) -> None:
        """Frees both buffers, when the last copy is done."""
        self._writers.shutdown()
        if self._mapping:
            self._mapping.sync_wait()
        for buffer in (self._written, self._copied):
            buffer.destroy()


def _mapped_memory(buffer: Any) -> np.ndarray:
    """The bytes of a mapped buffer, until it is unmapped.

    The package's own write_mapped holds Python's lock while it copies, so that no other thread could.
    """
    return np.frombuffer(buffer._experimental_get_mapped_range(), np.uint8)
