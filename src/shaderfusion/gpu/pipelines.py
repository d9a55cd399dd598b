"""Compute pipelines, each compiled once per device and kept as long as a program has it."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from shaderfusion.errors import ShaderError
from shaderfusion.gpu.backend import Runtime
from shaderfusion.gpu.failures import gpu_errors
from shaderfusion.gpu.shader import compose
from shaderfusion.kernels.call import KernelCall

__all__ = ["Pipeline", "PipelineCache", "pipeline_key"]

_MAX_COMPILERS = 8
"""Threads that compile: drivers take most of the time, and let go of Python meanwhile."""

_Key = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A compiled entry point and the layout that its bind groups follow."""

    handle: Any
    bind_group_layout: Any


class PipelineCache:
    """Pipelines by what makes them differ: the composed code, the entry point and the bindings' access.

    It keeps none itself: sizes of an image are part of some pipelines, and programs of many sizes come and go.
    """

    def __init__(self, runtime: Runtime, device: Any, *, trusted: bool) -> None:
        self._runtime = runtime
        self._device = device
        self._trusted = trusted
        self._pipelines: WeakValueDictionary[_Key, Pipeline] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._pipelines)

    def clear(self) -> None:
        """Forgets all pipelines, so that they are compiled again; programs keep those that they have."""
        self._pipelines.clear()

    def get(self, call: KernelCall) -> Pipeline:
        """The pipeline of a call; ShaderError if it does not compile."""
        return self.get_all([call])[0]

    def get_all(self, calls: Iterable[KernelCall]) -> list[Pipeline]:
        """The pipelines of calls; those not there yet are compiled, several at once. ShaderError if one does not."""
        keys = [(pipeline_key(call), call) for call in calls]
        found = {key: self._pipelines.get(key) for key, _ in keys}
        missing = {key: call for key, call in keys if found[key] is None}
        for key, pipeline in zip(missing, self._compile_all(list(missing.values())), strict=True):
            self._pipelines[key] = found[key] = pipeline
        return [pipeline for key, _ in keys if (pipeline := found[key])]

    def _compile_all(self, calls: list[KernelCall]) -> list[Pipeline]:
        if len(calls) > 1:
            with (
                suppress(ShaderError),  # is found again below: Dawn may tell one thread of another's error
                ThreadPoolExecutor(min(_MAX_COMPILERS, os.cpu_count() or 1)) as compilers,
            ):
                return list(compilers.map(self._compile, calls))
        return [self._compile(call) for call in calls]

    def _compile(self, call: KernelCall) -> Pipeline:
        source = compose(call, self._runtime.directives)

        def shader_error(message: str) -> ShaderError:
            return ShaderError(source.map_lines(message))

        with gpu_errors(call.source, shader_error):
            module = self._runtime.create_module(self._device, source.code, call.source, trusted=self._trusted)
        access = ("read-only-storage" if binding.access == "read" else "storage" for binding in call.bindings)
        types = (["uniform"] if call.params else []) + [*access]
        first = 0 if call.params else 1
        with gpu_errors(f"{call.source} ({call.entry_point})", shader_error):
            layout = self._device.create_bind_group_layout(
                entries=[
                    {"binding": first + i, "visibility": "COMPUTE", "buffer": {"type": kind}}
                    for i, kind in enumerate(types)
                ]
            )
            # Other calls of the device, such as copies of weights, do not wait for what is compiled this way.
            handle = self._device.create_compute_pipeline_async(
                label=call.name,
                layout=self._device.create_pipeline_layout(bind_group_layouts=[layout]),
                compute={"module": module, "entry_point": call.entry_point},
            ).sync_wait()
        return Pipeline(handle, layout)


def pipeline_key(call: KernelCall) -> _Key:
    """Calls of which this is equal have one pipeline."""
    # With types, as 1, 1.0 and True are equal but make different preludes. A False flag is an absent one.
    given = ((name, type(value), value) for name, value in call.constants.items() if value is not False)
    params = tuple((name, type(value)) for name, value in call.params.items())
    access = tuple(binding.access == "read" for binding in call.bindings)
    return (call.source, call.entry_point, call.dtype, tuple(sorted(given)), params, access)
