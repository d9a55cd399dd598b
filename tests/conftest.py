"""Devices for the tests: every kernel runs as a trusted and as a checked module."""

import os
import tempfile

import pytest

from shaderfusion.gpu.device import Device, open_device

# No test sees what `shaderfusion tune` left in the user's cache folder. Mesa's cache stays where it is.
os.environ["SHADERFUSION_CACHE"] = tempfile.mkdtemp(prefix="shaderfusion-tests-")


@pytest.fixture(scope="session")
def device() -> Device:
    """The first adapter, with the modules that users get."""
    return open_device()


@pytest.fixture(scope="session")
def checked_device() -> Device:
    """The same adapter with the WebGPU implementation's bounds and loop checks."""
    return open_device(trusted=False)


@pytest.fixture(params=["trusted", "checked"])
def any_device(request: pytest.FixtureRequest) -> Device:
    """Each in turn."""
    return request.getfixturevalue("device" if request.param == "trusted" else "checked_device")
