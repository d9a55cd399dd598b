"""Which adapter, with which features, limits and dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from shaderfusion.errors import DeviceError, InputError
from shaderfusion.gpu.backend import RUNTIMES, Runtime, RuntimeName, runtimes
from shaderfusion.gpu.failures import gpu_errors
from shaderfusion.gpu.pipelines import PipelineCache
from shaderfusion.gpu.turn import Turn
from shaderfusion.kernels.capabilities import WEBGPU_DEFAULTS, Capabilities
from shaderfusion.tensor import DType

__all__ = ["Device", "DeviceInfo", "list_devices", "open_device", "refusals"]

INSTALL_HINT = (
    "no GPU adapter answers. Install your GPU's driver, or software Vulkan, which needs no GPU: "
    "`sudo apt-get install mesa-vulkan-drivers` (Debian, Ubuntu), `sudo dnf install mesa-vulkan-drivers` (Fedora), "
    "`sudo pacman -S vulkan-swrast` (Arch)"
)

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
    """What a person needs to tell adapters apart."""

    runtime: RuntimeName
    """The WebGPU implementation that lists it; each lists the machine's adapters anew."""
    index: int
    """Among the adapters of its runtime; what `--device` takes."""
    name: str
    driver: str
    backend: str
    kind: str
    """DiscreteGPU, IntegratedGPU, CPU or Unknown, as the driver says."""
    has_f16: bool
    has_timestamps: bool
    has_matrix_units: bool
    """Its shaders reach matrix units that kernels use (`Capabilities.matrix_units`)."""
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

    def __init__(self, adapter: Any, info: DeviceInfo, *, trusted: bool = True, default_limits: bool = False) -> None:
        self.info = info
        runtime = RUNTIMES[info.runtime]
        features = runtime.features_of(adapter)
        can = _capabilities(runtime, adapter)  # before the adapter is used up
        granted = asdict(WEBGPU_DEFAULTS) if default_limits else {}
        limits = {name: granted.get(field, adapter.limits[name]) for field, name in _LIMITS.items()}
        with gpu_errors(f"device {info.index} ({info.name}) could not be opened"):
            self.handle = runtime.open(adapter, features, limits, trusted=trusted)
        self.capabilities = replace(
            can,
            **_limits(self.handle.limits),
            timestamp_period_ns=runtime.timestamp_period_ns(self.handle) if "timestamps" in features else None,
        )
        self.pipelines = PipelineCache(runtime, self.handle, trusted=trusted)
        self.turn = Turn()
        # Reading it waits for what was submitted before: wgpu 0.32's own on_submitted_work_done raises a TypeError.
        self._fence = self.handle.create_buffer(size=4, usage="COPY_SRC")

    def wait(self) -> None:
        """Until the GPU has done all that was submitted."""
        with gpu_errors(f"waiting for {self.info.name}"):
            self.handle.queue.read_buffer(self._fence)

    def __repr__(self) -> str:
        info = self.info
        return f"Device({info.runtime} {info.index}: {info.name}, {info.backend}, {info.driver})"


@cache
def _listed(runtime: Runtime) -> tuple[DeviceInfo, ...]:
    return tuple(_describe(runtime, index, adapter) for index, adapter in enumerate(runtime.adapters()))


def _describe(runtime: Runtime, index: int, adapter: Any) -> DeviceInfo:
    info, features = adapter.info, runtime.features_of(adapter)
    return DeviceInfo(
        runtime=runtime.name,
        index=index,
        name=info["device"],
        driver=info["description"],
        backend=info["backend_type"],
        kind=info["adapter_type"],
        has_f16="f16" in features,
        has_timestamps="timestamps" in features,
        has_matrix_units=_capabilities(runtime, adapter).matrix_units is not None,
        max_binding_bytes=adapter.limits["max-storage-buffer-binding-size"],
    )


def _capabilities(runtime: Runtime, adapter: Any) -> Capabilities:
    """The adapter's, but for what an opened device alone knows: how long its timestamps' ticks are."""
    features = runtime.features_of(adapter)
    return Capabilities(
        **_limits(adapter.limits),
        subgroup_sizes=runtime.subgroup_sizes(adapter),
        has_f16="f16" in features,
        has_int64="int64" in features,
        has_subgroups="subgroups" in features,
        matrix_shapes=runtime.matrix_shapes(adapter),
        is_cpu=adapter.info["adapter_type"] == "CPU",
        memory_bytes=runtime.memory_bytes(adapter),
    )


def _limits(limits: Mapping[str, int]) -> dict[str, Any]:
    """By our names."""
    return {field: limits[name] for field, name in _LIMITS.items()}


def list_devices(runtime: str = "auto") -> list[DeviceInfo]:
    """The adapters of this machine, by runtime and index; of `auto`, those that each installed runtime lists.

    Empty where there is none. InputError for a runtime that is not installed.
    """
    return [info for each in runtimes(runtime) for info in _listed(each)]


def open_device(
    selector: int | str | None = None, *, runtime: str = "auto", trusted: bool = True, default_limits: bool = False
) -> Device:
    """Opens the adapter with that index, or the first whose name contains that text; the first of all by default.

    The runtime is `wgpu` or `dawn`. `auto` takes Dawn where it is installed and reaches the matrix units of the adapter
    that it finds by that selector, else wgpu. `trusted` and `default_limits` are those of Device. Raises DeviceError
    where there is no adapter and InputError where none matches, or the runtime is not installed.
    """
    text = "0" if selector is None else str(selector).strip()
    found: list[tuple[Runtime, DeviceInfo]] = []
    for each in runtimes(runtime):
        info = next((info for info in _listed(each) if _matches(text, info)), None)
        if info is not None:
            found.append((each, info))
            if info.has_matrix_units:
                break
    if not found:
        raise _not_found(text, runtime)
    chosen, info = found[-1]
    return Device(chosen.adapters()[info.index], info, trusted=trusted, default_limits=default_limits)


def _matches(text: str, info: DeviceInfo) -> bool:
    return text == str(info.index) or (not text.isdigit() and text != "" and text.lower() in info.name.lower())


def _not_found(text: str, runtime: str) -> DeviceError | InputError:
    devices = list_devices(runtime)
    if devices:
        known = "; ".join(f"{info.index}: {info.name}" for info in devices)
        return InputError(f"device (={text!r}) must be an index or part of a name; this machine has {known}")
    if runtime == "dawn":
        return DeviceError(f"{_finds_none(RUNTIMES[runtime])}; use the runtime wgpu")
    return DeviceError(INSTALL_HINT)


def refusals() -> list[str]:
    """Why runtimes that are installed list no adapter, a sentence each, of those that say it."""
    return [_finds_none(each) for each in runtimes() if not _listed(each) and each.why_no_adapter]


def _finds_none(runtime: Runtime) -> str:
    because = f" ({runtime.why_no_adapter})" if runtime.why_no_adapter else ""
    return f"{runtime.name.title()} finds no GPU adapter that it can use{because}"
