"""C types of the wgpu package, parsed together.

cffi parses a C type by its text when that is first used, and each time all names of the header with it. That is most of
what the host does until a device is open and its first kernel runs; one parse of all types takes no longer than of one.
"""

from collections.abc import Callable, Sequence
from typing import Any

from cffi import CDefError

__all__ = ["USED_TYPES", "parse_together"]

USED_TYPES = (
    "WGPUInstanceExtras *",
    "WGPUInstanceDescriptor *",
    "WGPUChainedStruct *",
    "WGPUChainedStruct * ",
    "WGPUAdapter[]",
    "WGPUAdapterInfo *",
    "WGPUNativeLimits *",
    "WGPULimits *",
    "WGPUQueueDescriptor *",
    "WGPUDeviceExtras *",
    "void(WGPUDevice const *, WGPUDeviceLostReason, WGPUStringView, void *, void *)",
    "WGPUDeviceLostCallbackInfo *",
    "void(WGPUDevice const *, WGPUErrorType, WGPUStringView, void *, void *)",
    "WGPUUncapturedErrorCallbackInfo *",
    "WGPUFeatureName[]",
    "WGPUDeviceDescriptor *",
    "void(WGPURequestDeviceStatus, WGPUDevice, WGPUStringView, void *, void *)",
    "WGPURequestDeviceCallbackInfo *",
    "WGPUBufferDescriptor *",
    "WGPUShaderSourceWGSL *",
    "WGPUShaderModuleDescriptor *",
    "WGPUBufferBindingLayout *",
    "WGPUBindGroupLayoutEntry *",
    "WGPUBindGroupLayoutEntry[]",
    "WGPUBindGroupLayoutDescriptor *",
    "WGPUBindGroupLayout[]",
    "WGPUPipelineLayoutDescriptor *",
    "WGPUComputeState *",
    "WGPUComputePipelineDescriptor *",
    "WGPUCommandEncoderDescriptor *",
    "WGPUCommandBufferDescriptor *",
    "WGPUCommandBuffer[]",
    "void(WGPUMapAsyncStatus, WGPUStringView, void *, void *)",
    "WGPUBufferMapCallbackInfo *",
    "WGPUBindGroupEntry *",
    "WGPUBindGroupEntry[]",
    "WGPUBindGroupDescriptor *",
    "WGPUComputePassDescriptor *",
    "char []",
    "uint8_t []",
    "uint8_t *",
    "uint32_t []",
    "intptr_t",
    "uintptr_t",
)
"""As the package writes them. One that it uses and that is not here is parsed by itself."""


def parse_together(ffi: Any, texts: Sequence[str] = USED_TYPES) -> None:
    """Has a cffi.FFI know types by their texts, from one parse, where its declarations have all of them."""
    # An array would be a pointer as a parameter, so that it is a pointer to the array there.
    parameters = (text.replace("[]", "(*)[]") for text in texts)
    try:
        types = ffi.typeof(f"void(*)({', '.join(parameters)})").args
    except CDefError:  # another version's header
        return
    known = {text: c_type.item if "[]" in text else c_type for text, c_type in zip(texts, types, strict=True)}

    def by_type(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(c_type: Any, *args: Any, **options: Any) -> Any:
            return function(known.get(c_type, c_type) if isinstance(c_type, str) else c_type, *args, **options)

        return call

    for name in ("new", "cast", "callback", "from_buffer"):
        setattr(ffi, name, by_type(getattr(ffi, name)))
