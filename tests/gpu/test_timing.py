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
