"""Devices for the tests: every kernel runs as a trusted and as a checked module."""

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings
from poisoned import PoisonedRuntime

from shaderfusion.errors import ShaderfusionError
from shaderfusion.gpu import device as device_module
from shaderfusion.gpu.backend import RUNTIMES
from shaderfusion.gpu.device import Device, list_devices, open_device


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runtime", choices=("wgpu", "dawn"), default="wgpu", help="the WebGPU implementation to test")


def pytest_configure(config: pytest.Config) -> None:
    # Nearly all golden decoders have diffusers' default, force_upcast, of which test_run.py tests what is said.
    config.addinivalue_line("filterwarnings", "ignore:vae. runs in f32, which its configuration asks for")


# A deadline is by the wall clock, on which the machine's other work counts too. What must be fast measures CPU time.
settings.register_profile("without_deadlines", settings(deadline=None))
settings.load_profile("without_deadlines")

# No test sees what `shaderfusion tune` left in the user's cache folder. Mesa's cache stays where it is.
os.environ["SHADERFUSION_CACHE"] = tempfile.mkdtemp(prefix="shaderfusion-tests-")


@pytest.fixture(scope="module", autouse=True)
def freed_memory() -> Iterator[None]:
    """What llvmpipe's compiler has freed goes back to the system, which glibc does not do by itself."""
    yield
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # of another C library
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def runtime(pytestconfig: pytest.Config) -> str:
    """The WebGPU implementation that all devices are opened by; without an adapter of it, tests are skipped."""
    name = str(pytestconfig.getoption("--runtime"))
    try:
        if list_devices(name):
            return name
    except ShaderfusionError as error:
        pytest.skip(str(error))
    pytest.skip(f"no adapter of {name} on this machine")


@pytest.fixture(scope="session")
def device(runtime: str) -> Device:
    """The first adapter, with the modules that users get."""
    return open_device(runtime=runtime)


@pytest.fixture(scope="session")
def checked_device(runtime: str) -> Device:
    """The same adapter with the WebGPU implementation's bounds and loop checks, and poison in workgroup memory."""
    opened = open_device(runtime=runtime, trusted=False)
    opened.pipelines._runtime = PoisonedRuntime(opened.pipelines._runtime)  # type: ignore[assignment]
    return opened


@pytest.fixture(params=["trusted", "checked"])
def any_device(request: pytest.FixtureRequest) -> Device:
    """Each in turn."""
    return request.getfixturevalue("device" if request.param == "trusted" else "checked_device")


@pytest.fixture
def null_dawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dawn has its null adapter alone, which needs no GPU: it compiles and validates like others, and runs nothing."""
    dawn = RUNTIMES["dawn"]
    if not dawn.is_installed:
        pytest.skip("wgpudawn comes with the test extra")
    gpu = dawn._api.gpu

    def enumerate_null() -> list[object]:
        return [adapter for adapter in gpu._enumerate_all_adapters() if adapter.info["backend_type"] == "Null"]

    monkeypatch.setattr(gpu, "enumerate_adapters_sync", enumerate_null)
    monkeypatch.setattr(dawn, "_fresh", [])
    device_module._listed.cache_clear()
    yield
    device_module._listed.cache_clear()
