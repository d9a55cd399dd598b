"""Which adapter, with which features, limits and dtype."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import wgpu

from shaderfusion.errors import DeviceError, InputError
from shaderfusion.gpu.failures import gpu_errors
from shaderfusion.gpu.pipelines import PipelineCache
from shaderfusion.gpu.turn import Turn
from shaderfusion.kernels.capabilities import WEBGPU_DEFAULTS, Capabilities
from shaderfusion.tensor import DType

if TYPE_CHECKING:
    from wgpu import GPUAdapter

__all__ = ["RUNTIME", "Device", "DeviceInfo", "list_devices", "open_device"]

RUNTIME = f"wgpu {wgpu.__version__}"

INSTALL_HINT = (
    "no GPU adapter answers. Install your GPU's driver, or software Vulkan, which needs no GPU: "
    "`sudo apt-get install mesa-vulkan-drivers` (Debian, Ubuntu), `sudo dnf install mesa-vulkan-drivers` (Fedora), "
    "`sudo pacman -S vulkan-swrast` (Arch)"
)

_OPTIONAL_FEATURES = ("shader-f16", "shader-int64", "subgroup", "timestamp-query")
_LIMITS = {
    "max_binding_bytes": "max-storage-buffer-binding-size",
    "max_buffer_bytes": "max-buffer-size",
    "max_workgroup_bytes": "max-compute-workgroup-storage-size",
    "max_invocations": "max-compute-invocations-per-workgroup",
    "max_workgroup_size_x": "max-compute-workgroup-size-x",
    "max_storage_buffers": "max-storage-buffers-per-shader-stage",
}
"""WebGPU's names of the limits in Capabilities."""


@dataclass(frozen=True)
class DeviceInfo:
    """What a person needs to tell adapters apart; `index` is what `--device` takes."""

    index: int
    name: str
    driver: str
    backend: str
    kind: str
    """DiscreteGPU, IntegratedGPU, CPU or Unknown, as the driver says."""
    has_f16: bool
    has_timestamps: bool
    max_binding_bytes: int

    @property
    def default_dtype(self) -> DType:
        """f16 where the GPU has it; f32 on CPU adapters, whose f16 is emulated and slow."""
        return "f16" if self.has_f16 and self.kind != "CPU" else "f32"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the default dtype."""
        return {**asdict(self), "default_dtype": self.default_dtype}


class Device:
    """An opened adapter: its handle, its capabilities, its pipeline cache, and whose turn it is to use it.

    `trusted` runs the kernels without the bounds and loop checks that the WebGPU implementation would add
    (docs/architecture.md, "Trusted modules"); it is ignored where the implementation cannot do that. With
    `default_limits` the device grants no more than every WebGPU device does, whatever the adapter could.
    """

    def __init__(
        self, adapter: GPUAdapter, info: DeviceInfo, *, trusted: bool = True, default_limits: bool = False
    ) -> None:
        self.info = info
        features: list[Any] = [feature for feature in _OPTIONAL_FEATURES if feature in adapter.features]
        granted = asdict(WEBGPU_DEFAULTS) if default_limits else {}
        limits: dict[str, Any] = {name: granted.get(field, adapter.limits[name]) for field, name in _LIMITS.items()}
        try:
            with gpu_errors(f"opening {info.name}"):
                self.handle = adapter.request_device_sync(required_features=features, required_limits=limits)
        except RuntimeError as error:
            raise DeviceError(f"device {info.index} ({info.name}) could not be opened: {error}") from error
        self.capabilities = Capabilities(
            **{field: self.handle.limits[name] for field, name in _LIMITS.items()},
            subgroup_sizes=_subgroup_sizes(adapter),
            has_f16=self.has("shader-f16"),
            has_int64=self.has("shader-int64"),
            has_subgroups=self.has("subgroup"),
            timestamp_period_ns=_timestamp_period_ns(self.handle) if self.has("timestamp-query") else None,
            is_cpu=info.kind == "CPU",
        )
        self.pipelines = PipelineCache(self.handle, trusted=trusted)
        self.turn = Turn()
        # Reading it waits for what was submitted before: wgpu 0.32's own on_submitted_work_done raises a TypeError.
        self._fence = self.handle.create_buffer(size=4, usage=wgpu.BufferUsage.COPY_SRC)

    def has(self, feature: str) -> bool:
        """Whether the opened device has an optional feature, by WebGPU's or wgpu's name."""
        return feature in self.handle.features

    def wait(self) -> None:
        """Until the GPU has done all that was submitted."""
        with gpu_errors(f"waiting for {self.info.name}"):
            self.handle.queue.read_buffer(self._fence)

    def __repr__(self) -> str:
        return f"Device({self.info.index}: {self.info.name}, {self.info.backend}, {self.info.driver})"


@cache
def _adapters() -> tuple[tuple[DeviceInfo, Any], ...]:
    """All adapters that can run compute shaders, GPUs before CPUs, each physical device once."""
    # Where it is unset, Mesa's drivers look for a Wayland display and complain on stderr.
    os.environ.setdefault("XDG_RUNTIME_DIR", "/nonexistent")
    _leave_out_opengl()
    order = {"DiscreteGPU": 0, "IntegratedGPU": 1, "VirtualGPU": 2, "Unknown": 3, "CPU": 4}
    found = [a for a in wgpu.gpu.enumerate_adapters_sync() if a.info["backend_type"] != "OpenGL"]
    found.sort(key=lambda a: order.get(a.info["adapter_type"], 3))
    return tuple((_describe(index, adapter), adapter) for index, adapter in enumerate(found))


def _leave_out_opengl() -> None:
    """OpenGL adapters repeat a device that Vulkan, Metal or DX12 lists, without its features, and take time to find."""
    try:
        from wgpu.backends.wgpu_native.extras import set_instance_extras
    except ImportError:  # another implementation
        return
    with suppress(RuntimeError):  # another user of wgpu in this process was first
        set_instance_extras(backends=["Vulkan", "Metal", "DX12"])


def _describe(index: int, adapter: GPUAdapter) -> DeviceInfo:
    info = adapter.info
    return DeviceInfo(
        index=index,
        name=info["device"],
        driver=info["description"],
        backend=info["backend_type"],
        kind=info["adapter_type"],
        has_f16="shader-f16" in adapter.features,
        has_timestamps="timestamp-query" in adapter.features,
        max_binding_bytes=adapter.limits["max-storage-buffer-binding-size"],
    )


def _subgroup_sizes(adapter: GPUAdapter) -> tuple[int, int] | None:
    """The adapter's least and largest subgroup; None where the driver does not say."""
    # wgpu 0.32 spells WebGPU's subgroup_min_size "stackgroup_min_size".
    info: dict[str, Any] = dict(adapter.info)
    least, largest = (info.get(f"subgroup_{end}_size", info.get(f"stackgroup_{end}_size", 0)) for end in ("min", "max"))
    return (least, largest) if least > 0 else None


def _timestamp_period_ns(handle: Any) -> float:
    """Nanoseconds of a timestamp's tick: wgpu-native gives the device's own ticks, WebGPU elsewhere nanoseconds.

    wgpu.h: float wgpuQueueGetTimestampPeriod(queue), which the wgpu package declares but does not wrap.
    """
    try:
        from wgpu.backends.wgpu_native import _api
    except ImportError:
        return 1.0
    native: Any = _api  # its attributes are made at run time
    if not hasattr(native.lib, "wgpuQueueGetTimestampPeriod"):
        return 1.0
    return float(native.libf.wgpuQueueGetTimestampPeriod(handle.queue._internal))


def list_devices() -> list[DeviceInfo]:
    """The adapters of this machine, in the order of their index; empty where there is none."""
    return [info for info, _ in _adapters()]


def open_device(selector: int | str | None = None, *, trusted: bool = True, default_limits: bool = False) -> Device:
    """Opens the adapter with that index, or the first whose name contains that text; the first of all by default.

    `trusted` and `default_limits` are those of Device. Raises DeviceError where there is no adapter and InputError
    where none matches.
    """
    adapters = _adapters()
    if not adapters:
        raise DeviceError(INSTALL_HINT)
    text = "0" if selector is None else str(selector).strip()
    for info, adapter in adapters:
        if text == str(info.index) or (not text.isdigit() and text and text.lower() in info.name.lower()):
            return Device(adapter, info, trusted=trusted, default_limits=default_limits)
    known = "; ".join(f"{info.index}: {info.name}" for info, _ in adapters)
    raise InputError(f"device (={text!r}) must be an index or part of a name; this machine has {known}")
