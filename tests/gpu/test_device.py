"""Choosing a device, and turning wgpu's errors into ours."""

import os
import subprocess
import sys

import pytest

from shaderfusion.errors import InputError, ShaderfusionError
from shaderfusion.gpu import device as device_module
from shaderfusion.gpu.backend import runtimes
from shaderfusion.gpu.device import Device, DeviceInfo, list_devices, open_device
from shaderfusion.gpu.failures import gpu_errors
from shaderfusion.kernels.capabilities import WEBGPU_DEFAULTS


def test_indices_count_from_zero() -> None:
    for runtime in runtimes():
        devices = list_devices(runtime.name)
        assert [info.index for info in devices] == list(range(len(devices)))
        assert {info.runtime for info in devices} <= {runtime.name}
        assert "OpenGL" not in {info.backend for info in devices}


def test_by_index_and_by_name(runtime: str) -> None:
    info = list_devices(runtime)[0]
    for selector in (None, 0, "0", " 0 ", info.name, info.name.upper(), info.name[1:4]):
        assert open_device(selector, runtime=runtime).info == info


@pytest.mark.parametrize("selector", [99, "99", "-1", "", "no such adapter"])
def test_unknown_device(runtime: str, selector: int | str) -> None:
    info = list_devices(runtime)[0]
    with pytest.raises(InputError) as caught:
        open_device(selector, runtime=runtime)
    message = str(caught.value)
    assert message.startswith(f"device (={str(selector)!r}) must be an index or part of a name; this machine has 0: ")
    assert info.name in message


def test_an_index_is_not_part_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    info = DeviceInfo("wgpu", 0, "Card 4090", "driver", "Vulkan", "DiscreteGPU", True, True, False, 1 << 27)
    monkeypatch.setattr(device_module, "_listed", lambda _: (info,))
    with pytest.raises(InputError, match=r"device \(='4090'\) must be an index .* 0: Card 4090"):
        open_device("4090", runtime="wgpu")


NO_ADAPTER = """
from shaderfusion.errors import DeviceError
from shaderfusion.gpu.device import list_devices, open_device
print(list_devices())
try:
    open_device()
except DeviceError as error:
    print(error)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="Vulkan's variables hide every adapter only where there is no other"
)
def test_no_adapter() -> None:
    nothing = os.devnull
    env = {
        **os.environ,
        "VK_DRIVER_FILES": nothing,
        "VK_ICD_FILENAMES": nothing,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    result = subprocess.run([sys.executable, "-c", NO_ADAPTER], env=env, capture_output=True, text=True, check=True)
    listed, message = result.stdout.splitlines()
    assert listed == "[]"
    assert message.startswith("no GPU adapter answers. Install")
    assert "`sudo apt-get install mesa-vulkan-drivers`" in message


@pytest.mark.parametrize(
    ("kind", "has_f16", "dtype"),
    [("DiscreteGPU", True, "f16"), ("DiscreteGPU", False, "f32"), ("CPU", True, "f32"), ("Unknown", True, "f16")],
)
def test_default_dtype(kind: str, has_f16: bool, dtype: str) -> None:
    info = DeviceInfo("wgpu", 0, "name", "driver", "Vulkan", kind, has_f16, True, False, 1 << 27)
    assert info.default_dtype == dtype
    assert info.as_dict()["default_dtype"] == dtype
    assert info.as_dict()["name"] == "name"


def test_capabilities_are_at_least_those_of_webgpu(device: Device) -> None:
    capabilities = vars(device.capabilities)
    for name, value in vars(WEBGPU_DEFAULTS).items():
        if name.startswith("max_"):
            assert capabilities[name] >= value, name


def test_default_limits(runtime: str) -> None:
    device = open_device(runtime=runtime, default_limits=True)
    granted = vars(device.capabilities)
    assert {name: granted[name] for name in granted if name.startswith("max_")} == {
        name: value for name, value in vars(WEBGPU_DEFAULTS).items() if name.startswith("max_")
    }
    with pytest.raises(ShaderfusionError, match=r"^a buffer: "), gpu_errors("a buffer"):
        device.handle.create_buffer(size=(1 << 28) + 4, usage="STORAGE")
