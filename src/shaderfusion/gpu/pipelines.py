"""Compute pipelines, each compiled once per device."""

from typing import Any, NamedTuple

import wgpu

from shaderfusion.errors import ShaderError
from shaderfusion.gpu.failures import gpu_errors
from shaderfusion.gpu.shader import compose, create_module
from shaderfusion.kernels.call import KernelCall

__all__ = ["Pipeline", "PipelineCache"]


class Pipeline(NamedTuple):
    """A compiled entry point and the layout that its bind groups follow."""

    handle: Any
    bind_group_layout: Any


class PipelineCache:
    """Pipelines by what makes them differ: the composed code, the entry point and the bindings' access."""

    def __init__(self, device: Any, *, trusted: bool) -> None:
        self._device = device
        self._trusted = trusted
        self._modules: dict[str, Any] = {}
        self._pipelines: dict[tuple[Any, ...], Pipeline] = {}

    def __len__(self) -> int:
        return len(self._pipelines)

    def clear(self) -> None:
        """Forgets all pipelines, so that they are compiled again; programs keep those that they have."""
        self._modules.clear()
        self._pipelines.clear()

    def get(self, call: KernelCall) -> Pipeline:
        """The pipeline of a call, compiled on first use; ShaderError if it does not compile."""
        # With types, as 1, 1.0 and True are equal but make different preludes. A False flag is an absent one.
        given = ((name, type(value), value) for name, value in call.constants.items() if value is not False)
        constants = tuple(sorted(given))
        params = tuple((name, type(value)) for name, value in call.params.items())
        access = tuple(binding.access == "read" for binding in call.bindings)
        key = (call.source, call.entry_point, call.dtype, constants, params, access)
        if key not in self._pipelines:
            self._pipelines[key] = self._compile(call, access)
        return self._pipelines[key]

    def _compile(self, call: KernelCall, access: tuple[bool, ...]) -> Pipeline:
        source = compose(call)
        module = self._modules.get(source.code)
        if module is None:
            module = create_module(self._device, source, call.source, trusted=self._trusted)
            self._modules[source.code] = module
        types = (["uniform"] if call.params else []) + ["read-only-storage" if only else "storage" for only in access]
        first = 0 if call.params else 1
        name = f"{call.source} ({call.entry_point})"
        with gpu_errors(name, lambda message: ShaderError(source.map_lines(message))):
            layout = self._device.create_bind_group_layout(
                entries=[
                    {"binding": first + i, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": kind}}
                    for i, kind in enumerate(types)
                ]
            )
            handle = self._device.create_compute_pipeline(
                label=call.name,
                layout=self._device.create_pipeline_layout(bind_group_layouts=[layout]),
                compute={"module": module, "entry_point": call.entry_point},
            )
        return Pipeline(handle, layout)
