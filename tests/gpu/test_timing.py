"""Timestamps: the device's ticks as milliseconds."""

from dataclasses import replace

import numpy as np
import pytest

from shaderfusion.gpu.device import Device
from shaderfusion.gpu.timing import Timestamps


def test_ticks_have_the_devices_period(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    period_ns = device.capabilities.timestamp_period_ns
    if period_ns is None:
        pytest.skip("this device has no timestamp queries")
    assert 0 < period_ns < 1e4
    monkeypatch.setattr(device, "capabilities", replace(device.capabilities, timestamp_period_ns=40.0))
    timestamps = Timestamps(device, 2)
    ticks = np.array([[1000, 26000], [2**63, 2**63 + 50000]], np.uint64)
    monkeypatch.setattr(device.handle.queue, "read_buffer", lambda buffer: ticks.tobytes())
    np.testing.assert_allclose(timestamps.read_ms(), [1.0, 2.0])


def test_more_passes_than_a_set_of_queries_has_room_for(device: Device) -> None:
    if device.capabilities.timestamp_period_ns is None:
        pytest.skip("this device has no timestamp queries")
    num_passes = 2050
    timestamps = Timestamps(device, num_passes)
    encoder = device.handle.create_command_encoder()
    for _ in range(num_passes):
        encoder.begin_compute_pass(timestamp_writes=timestamps.next_writes()).end()
    device.handle.queue.submit([encoder.finish()])
    times_ms = timestamps.read_ms()
    assert times_ms.shape == (num_passes,)
    assert 0 <= times_ms.min() <= times_ms.max() < 1e3
