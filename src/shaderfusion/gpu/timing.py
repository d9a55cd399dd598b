"""Time per label, on the GPU's own clock."""

from typing import Any

import numpy as np

from shaderfusion.errors import DeviceError
from shaderfusion.gpu.device import Device
from shaderfusion.gpu.failures import gpu_errors

__all__ = ["Timestamps"]

_SET_PASSES = 2048
"""Of a query set, each with two of the 4,096 queries that WebGPU allows it."""


class Timestamps:
    """Begin and end of up to `count` compute passes, by the ticks of the device's clock."""

    def __init__(self, device: Device, count: int) -> None:
        period_ns = device.capabilities.timestamp_period_ns
        if period_ns is None:
            raise DeviceError(f"device {device.info.index} ({device.info.name}) has no timestamp queries")
        self._device = device
        self._period_ns = period_ns
        self._written = 0
        usage = "QUERY_RESOLVE|COPY_SRC"
        with gpu_errors("making timestamp queries"):
            self._sets = [
                device.handle.create_query_set(type="timestamp", count=2 * min(_SET_PASSES, count - first))
                for first in range(0, count, _SET_PASSES)
            ]
            self._buffer = device.handle.create_buffer(size=16 * count, usage=usage)

    def next_writes(self) -> dict[str, Any]:
        """The `timestamp_writes` of the next pass."""
        index, place = divmod(self._written, _SET_PASSES)
        self._written += 1
        return {
            "query_set": self._sets[index],
            "beginning_of_pass_write_index": 2 * place,
            "end_of_pass_write_index": 2 * place + 1,
        }

    def read_ms(self) -> np.ndarray:
        """Milliseconds of each pass, shape (count,). Waits for the GPU."""
        with gpu_errors("reading timestamps"):
            encoder = self._device.handle.create_command_encoder()
            for index, queries in enumerate(self._sets):
                encoder.resolve_query_set(queries, 0, queries.count, self._buffer, 16 * _SET_PASSES * index)
            self._device.handle.queue.submit([encoder.finish()])
            raw: Any = self._device.handle.queue.read_buffer(self._buffer)
        ticks = np.frombuffer(raw, np.uint64).reshape(-1, 2)
        return (ticks[:, 1] - ticks[:, 0]).astype(np.float64) * self._period_ns / 1e6
