"""Time per label, on the GPU's own clock."""

from typing import Any

import numpy as np

from shaderfusion.errors import DeviceError
from shaderfusion.gpu.device import Device
from shaderfusion.gpu.failures import gpu_errors

__all__ = ["Timestamps"]


class Timestamps:
    """Begin and end of up to `count` compute passes, by the ticks of the device's clock."""

    def __init__(self, device: Device, count: int) -> None:
        period_ns = device.capabilities.timestamp_period_ns
        if period_ns is None:
            raise DeviceError(f"device {device.info.index} ({device.info.name}) has no timestamp queries")
        self._device = device
        self._period_ns = period_ns
        self._count = count
        self._written = 0
        usage = "QUERY_RESOLVE|COPY_SRC"
        with gpu_errors("making timestamp queries"):
            self._queries = device.handle.create_query_set(type="timestamp", count=2 * count)
            self._buffer = device.handle.create_buffer(size=16 * count, usage=usage)

    def next_writes(self) -> dict[str, Any]:
        """The `timestamp_writes` of the next pass."""
        first = 2 * self._written
        self._written += 1
        return {
            "query_set": self._queries,
            "beginning_of_pass_write_index": first,
            "end_of_pass_write_index": first + 1,
        }

    def read_ms(self) -> np.ndarray:
        """Milliseconds of each pass, shape (count,). Waits for the GPU."""
        with gpu_errors("reading timestamps"):
            encoder = self._device.handle.create_command_encoder()
            encoder.resolve_query_set(self._queries, 0, 2 * self._count, self._buffer, 0)
            self._device.handle.queue.submit([encoder.finish()])
            raw: Any = self._device.handle.queue.read_buffer(self._buffer)
        ticks = np.frombuffer(raw, np.uint64).reshape(-1, 2)
        return (ticks[:, 1] - ticks[:, 0]).astype(np.float64) * self._period_ns / 1e6
