"""Which WebGPU implementation runs: wgpu-native, by the package wgpu, or Dawn, by wgpudawn. Nothing else knows of two.

Both packages have the API of wgpu-py. What differs is here: how adapters are found and opened, how checks are left out,
what features are called, and what WGSL wants to be told. A package is imported when its implementation is first used.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from shaderfusion.arguments import missing_extra
from shaderfusion.errors import InputError
from shaderfusion.gpu.c_types import parse_together
from shaderfusion.gpu.shader import Directives
from shaderfusion.kernels.capabilities import MatrixShape

__all__ = ["RUNTIMES", "Feature", "Runtime", "RuntimeName", "gpu_error_types", "runtimes"]

RuntimeName = Literal["wgpu", "dawn"]
Feature = Literal["f16", "int64", "subgroups", "timestamps", "matrix_units", "subgroup_size_control"]
"""What a device may have beyond WebGPU's core."""


class Runtime(ABC):
    """One implementation. Adapters and opened devices are its package's objects, with the API of wgpu-py."""

    name: ClassVar[RuntimeName]
    package: ClassVar[str]
    features: ClassVar[Mapping[Feature, str]]
    """Its own names of those that it may have."""
    directives: ClassVar[Directives]

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return find_spec(self.package) is not None

    def load(self) -> None:
        """Imports its package, as the first look for adapters would. Nearly all of that is Python's work."""
        with suppress(ImportError, OSError):  # then it has no adapters
            assert self._api

    @property
    def why_no_adapter(self) -> str:
        """What the implementation says of adapters that it refuses, in a line; mostly nothing."""
        return ""

    def adapters(self) -> list[Any]:
        """Those that can be opened, GPUs before CPUs, in the same order at every call."""
        # Where it is unset, Mesa's drivers look for a Wayland display and complain on stderr.
        os.environ.setdefault("XDG_RUNTIME_DIR", "/nonexistent")
        order = {"DiscreteGPU": 0, "IntegratedGPU": 1, "VirtualGPU": 2, "Unknown": 3, "CPU": 4}
        return sorted(self._enumerate(), key=lambda adapter: order.get(adapter.info["adapter_type"], 3))

    @abstractmethod
    def _enumerate(self) -> list[Any]:
        """The same in the implementation's order."""

    @abstractmethod
    def open(self, adapter: Any, features: Sequence[Feature], limits: Mapping[str, int], *, trusted: bool) -> Any:
        """The opened device, which several threads may call; `limits` by WebGPU's names. RuntimeError if it fails.

        Only where it is `trusted` are checks left out.
        """

    @abstractmethod
    def create_module(self, device: Any, code: str, label: str, *, trusted: bool) -> Any:
        """Compiles WGSL, without bounds and loop checks where it is trusted and the implementation can do that."""

    @abstractmethod
    def timestamp_period_ns(self, device: Any) -> float:
        """Nanoseconds of a timestamp's tick."""

    def features_of(self, adapter: Any) -> list[Feature]:
        """Those that an adapter, or an opened device, has."""
        return [feature for feature, name in self.features.items() if name in adapter.features]

    def subgroup_sizes(self, adapter: Any) -> tuple[int, int] | None:
        """The adapter's least and largest subgroup; None where the driver does not say."""
        # Read anew: the package's own copy (of 0.32) looks for members that the struct does not have.
        api = self._api
        info = api.new_struct_p("WGPUAdapterInfo *")
        api.libf.wgpuAdapterGetInfo(adapter._internal, info)
        sizes = (int(info.subgroupMinSize), int(info.subgroupMaxSize))
        api.libf.wgpuAdapterInfoFreeMembers(info[0])
        return sizes if sizes[0] > 0 else None

    def matrix_shapes(self, adapter: Any) -> tuple[MatrixShape, ...]:
        """The products of f16, summed in f32, that the adapter's matrix units do."""
        return ()

    def memory_bytes(self, adapter: Any) -> int | None:
        """The adapter's own memory; None where the implementation does not say."""
        return None

    @cached_property
    def _api(self) -> Any:
        """The package's calls of the library, whose attributes are made at run time."""
        return self._load()

    @abstractmethod
    def _load(self) -> Any:
        """Imports the package and prepares the implementation."""


class _WgpuNative(Runtime):
    name = "wgpu"
    package = "wgpu"
    features: ClassVar = {
        "f16": "shader-f16",
        "int64": "shader-int64",
        "subgroups": "subgroup",
        "timestamps": "timestamp-query",
    }
    directives: ClassVar = {"f16": ("enable f16;",)}

    def _load(self) -> Any:
        from wgpu.backends.wgpu_native import _api
        from wgpu.backends.wgpu_native.extras import set_instance_extras

        parse_together(_api.ffi)
        # OpenGL adapters repeat a device that Vulkan, Metal or DX12 lists, without its features, and take time to find.
        with suppress(RuntimeError):  # another user of wgpu in this process was first
            set_instance_extras(backends=["Vulkan", "Metal", "DX12"])
        return _api

    def _enumerate(self) -> list[Any]:
        return self._found

    @cached_property
    def _found(self) -> list[Any]:
        return [a for a in self._api.gpu.enumerate_adapters_sync() if a.info["backend_type"] != "OpenGL"]

    def open(self, adapter: Any, features: Sequence[Feature], limits: Mapping[str, int], *, trusted: bool) -> Any:
        names = [self.features[feature] for feature in features]
        return adapter.request_device_sync(required_features=names, required_limits=dict(limits))

    def create_module(self, device: Any, code: str, label: str, *, trusted: bool) -> Any:
        if not trusted or not hasattr(self._api.lib, "wgpuDeviceCreateShaderModuleTrusted"):
            return device.create_shader_module(label=label, code=code)
        # wgpu-native's extension call, which the package declares but does not wrap. wgpu.h:
        # WGPUShaderModule wgpuDeviceCreateShaderModuleTrusted(device, descriptor, runtime checks to keep).
        api = self._api
        wgsl = api.new_struct_p("WGPUShaderSourceWGSL *", code=api.to_c_string_view(code))
        wgsl[0].chain.next = api.ffi.NULL
        wgsl[0].chain.sType = api.lib.WGPUSType_ShaderSourceWGSL
        descriptor = api.new_struct_p(
            "WGPUShaderModuleDescriptor *",
            nextInChain=api.ffi.cast("WGPUChainedStruct *", wgsl),
            label=api.to_c_string_view(label),
        )
        no_checks = api.lib.WGPUShaderRuntimeChecks_None
        module = api.libf.wgpuDeviceCreateShaderModuleTrusted(device._internal, descriptor, no_checks)
        return api.GPUShaderModule(label, module, device)

    def timestamp_period_ns(self, device: Any) -> float:
        # Timestamps are in the device's own ticks. wgpu.h: float wgpuQueueGetTimestampPeriod(queue), which the package
        # declares but does not wrap.
        if not hasattr(self._api.lib, "wgpuQueueGetTimestampPeriod"):
            return 1.0
        return float(self._api.libf.wgpuQueueGetTimestampPeriod(device.queue._internal))


class _Dawn(Runtime):
    name = "dawn"
    package = "wgpudawn"
    features: ClassVar = {
        "f16": "shader-f16",
        "subgroups": "subgroups",
        "timestamps": "timestamp-query",
        "matrix_units": "chromium-experimental-subgroup-matrix",
        "subgroup_size_control": "subgroup-size-control",
    }
    directives: ClassVar = {
        "f16": ("enable f16;",),
        "subgroups": ("enable subgroups;",),
        "subgroup_size_control": ("enable subgroup_size_control;",),
        "matrix_units": (
            "enable chromium_experimental_subgroup_matrix;",
            # Which rows a subgroup takes follows from its invocations' index: uniform, but not for Tint to see.
            "diagnostic(off, chromium.subgroup_matrix_uniformity);",
            "diagnostic(off, subgroup_uniformity);",
        ),
    }

    _TOGGLES = ("allow_unsafe_apis", "vulkan_enable_f16_on_nvidia")
    """Of the process: matrix units, and f16 on all GPUs that have it."""
    _TRUSTED_TOGGLES = ("disable_robustness", "disable_workgroup_init")
    """Of a device: what shaders are compiled to. Calls are validated, which takes next to no time."""

    def __init__(self) -> None:
        self._fresh: list[Any] = []
        self._why_no_adapter = ""

    @property
    def why_no_adapter(self) -> str:
        return self._why_no_adapter

    def _load(self) -> Any:
        from wgpudawn.backends.dawn import _api
        from wgpudawn.backends.dawn.extras import set_instance_extras

        with suppress(RuntimeError):  # another user of wgpudawn in this process was first
            set_instance_extras(backends=["Vulkan", "Metal", "DX12"], enable_toggles=self._TOGGLES)
        return _api

    def _enumerate(self) -> list[Any]:
        if not self._fresh:
            try:
                api = self._api
            except (ImportError, OSError) as error:  # its library does not load on this system
                self._why_no_adapter = str(error)
                return []
            with _caught_from_stderr() as warnings:
                self._fresh = list(api.gpu.enumerate_adapters_sync())
            self._why_no_adapter = "; ".join(warnings)
        return self._fresh

    def open(self, adapter: Any, features: Sequence[Feature], limits: Mapping[str, int], *, trusted: bool) -> Any:
        from wgpudawn.backends.dawn.extras import request_device_sync

        self._fresh = []  # an adapter opens one device: the next device needs one that is listed anew
        names: list[Any] = ["implicit-device-synchronization", *(self.features[feature] for feature in features)]
        return request_device_sync(
            adapter,
            required_features=names,
            required_limits=dict(limits),
            enable_toggles=self._TRUSTED_TOGGLES if trusted else (),
            disable_toggles=["timestamp_quantization"],  # which browsers want
        )

    def create_module(self, device: Any, code: str, label: str, *, trusted: bool) -> Any:
        return device.create_shader_module(label=label, code=code)  # checks are the device's

    def timestamp_period_ns(self, device: Any) -> float:
        return 1.0

    def matrix_shapes(self, adapter: Any) -> tuple[MatrixShape, ...]:
        features, sizes = self.features_of(adapter), self.subgroup_sizes(adapter)
        one_size = sizes is not None and sizes[0] == sizes[1]
        if not {"f16", "subgroups", "matrix_units"} <= set(features) or not (
            one_size or "subgroup_size_control" in features
        ):
            return ()
        from wgpudawn.backends.dawn.extras import get_adapter_properties

        found = [
            MatrixShape(c["m"], c["n"], c["k"], c["component_type"], c["result_component_type"])
            for c in get_adapter_properties(adapter).get("subgroup_matrix_configs", ())
        ]
        return tuple(dict.fromkeys(shape for shape in found if (shape.operand, shape.result) == ("f16", "f32")))

    def memory_bytes(self, adapter: Any) -> int | None:
        from wgpudawn.backends.dawn.extras import get_adapter_properties

        heaps = get_adapter_properties(adapter).get("memory_heaps", ())
        return max((heap["size"] for heap in heaps if "device-local" in heap["properties"]), default=None)


@contextmanager
def _caught_from_stderr() -> Iterator[list[str]]:
    """Takes Dawn's warnings, each by its first line, out of what is written to stderr meanwhile.

    Dawn tells only there why it refuses an adapter.
    """
    caught: list[str] = []
    with ExitStack() as cleanup:
        try:
            file = cleanup.enter_context(tempfile.TemporaryFile())
            stderr = os.dup(2)
        except OSError:  # no place for files, or a process without a stderr
            yield caught
            return
        os.dup2(file.fileno(), 2)
        try:
            yield caught
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            text = file.read().decode(errors="replace")
            caught += _DAWN_WARNING.findall(text)
            os.write(2, _DAWN_WARNING.sub("", text).encode())


_DAWN_WARNING = re.compile(r"^Warning: (.*?)\.?\n(?:(?: - |    at ).*\n)*\n?", re.MULTILINE)

RUNTIMES: dict[RuntimeName, Runtime] = {"wgpu": _WgpuNative(), "dawn": _Dawn()}


def runtimes(asked: str = "auto") -> list[Runtime]:
    """Those that may serve, the one to try first in front: all that are installed, or the one that is asked for.

    InputError where that is none, or is not installed.
    """
    if asked == "auto":
        return [runtime for runtime in (RUNTIMES["dawn"], RUNTIMES["wgpu"]) if runtime.is_installed]
    runtime = next((runtime for name, runtime in RUNTIMES.items() if name == asked), None)
    if runtime is None:
        raise InputError(f"runtime (={asked!r}) must be auto or one of {', '.join(RUNTIMES)}")
    if not runtime.is_installed:
        raise missing_extra(f"runtime (={asked!r})", asked)
    return [runtime]


def gpu_error_types() -> tuple[type[Exception], ...]:
    """What the packages that are loaded raise. RuntimeError is what a call that was waited for ends with."""
    packages = [sys.modules.get(runtime.package) for runtime in RUNTIMES.values()]
    return (*(package.GPUError for package in packages if package and hasattr(package, "GPUError")), RuntimeError)
