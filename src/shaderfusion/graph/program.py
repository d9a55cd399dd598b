"""Graph + memory plan + device -> pipelines and bind groups, recorded once and replayed each step."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import wgpu

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.buffers import allocate, download, upload
from shaderfusion.gpu.device import Device
from shaderfusion.gpu.failures import gpu_errors
from shaderfusion.gpu.timing import Timestamps
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.kernels.call import KernelCall
from shaderfusion.tensor import TensorSpec

__all__ = ["Buffers", "Program"]

Buffers = dict[TensorSpec, Any]
"""GPU buffers of the tensors that outlive a run: weights, inputs, outputs. Programs may share them."""

_PARAMS_ALIGNMENT_BYTES = 256  # WebGPU's largest min-uniform-buffer-offset-alignment


class _Dispatch(NamedTuple):
    pipeline: Any
    bind_group: Any
    workgroups: tuple[int, int, int]
    label: str


class Program:
    """A graph, ready to run on one device.

    `external` holds the buffers of weights, inputs and outputs; inputs and outputs that it lacks are allocated
    into it. The intermediate tensors live in buffers of `memory`, a list that programs which never run at the
    same time can share: it grows to what the largest of them needs.
    """

    def __init__(self, device: Device, graph: Graph, external: Buffers, memory: list[Any] | None = None) -> None:
        self.device = device
        self.graph = graph
        calls = graph.calls
        self.plan = plan_memory(calls)
        self._external = external
        self._memory = _grow([] if memory is None else memory, device, self.plan.buffer_sizes_bytes, self._largest())
        params, offsets = _pack_params(calls)
        self._params = device.handle.create_buffer_with_data(data=params, usage=wgpu.BufferUsage.UNIFORM)
        self._dispatches = [self._bind(call, offset) for call, offset in zip(calls, offsets, strict=True)]

    def _largest(self) -> list[str]:
        """By shared buffer, the name of the largest tensor in it, for errors."""
        names: dict[int, str] = {}
        for tensor, place in self.plan.place_of.items():
            names.setdefault(place.buffer, tensor.name)
        return [names[index] for index in range(len(names))]

    def _buffer(self, tensor: TensorSpec) -> Any:
        storage = tensor.storage
        if storage.role == "intermediate":
            return self._memory[self.plan.place_of[storage].buffer]
        if storage not in self._external:
            self._external[storage] = allocate(self.device, storage.size_bytes, storage.name)
        return self._external[storage]

    def _bind(self, call: KernelCall, params_offset: int) -> _Dispatch:
        pipeline = self.device.pipelines.get(call)
        entries: list[Any] = []
        if call.params:
            resource = {"buffer": self._params, "offset": params_offset, "size": 4 * len(call.params)}
            entries.append({"binding": 0, "resource": resource})
        for index, binding in enumerate(call.bindings, start=1):
            tensor, storage = binding.tensor, binding.tensor.storage
            offset = self.plan.place_of[storage].offset_bytes if storage.role == "intermediate" else 0
            offset += tensor.offset_bytes
            resource = {"buffer": self._buffer(storage), "offset": offset, "size": tensor.size_bytes}
            entries.append({"binding": index, "resource": resource})
        with gpu_errors(call.label):
            group = self.device.handle.create_bind_group(layout=pipeline.bind_group_layout, entries=entries)
        return _Dispatch(pipeline.handle, group, call.workgroups, call.label)

    def write(self, name: str, array: np.ndarray) -> None:
        """Fills an input or output before the next run."""
        tensor = self._external_tensor(name)
        upload(self.device, self._buffer(tensor), tensor, array)

    def read(self, name: str) -> np.ndarray:
        """Waits for the runs so far and reads an input or output."""
        tensor = self._external_tensor(name)
        return download(self.device, self._buffer(tensor), tensor)

    def _external_tensor(self, name: str) -> TensorSpec:
        tensors = self.graph.inputs | self.graph.outputs
        if name not in tensors:
            raise ShapeError(f"{self.graph.name}: no input or output {name!r}; it has {', '.join(tensors)}")
        return tensors[name]

    def run(self) -> None:
        """Submits every call, in order, without waiting for the GPU."""
        self._submit([self._dispatches], None)

    def time_ms(self) -> float:
        """Runs once and waits: milliseconds on the GPU's clock. DeviceError without timestamps."""
        timestamps = Timestamps(self.device, 1)
        self._submit([self._dispatches], timestamps)
        return float(timestamps.read_ms()[0])

    def profile_ms(self) -> list[tuple[str, float]]:
        """Runs once with a timestamp around each call: (label, ms) in order. DeviceError without timestamps."""
        timestamps = Timestamps(self.device, len(self._dispatches))
        self._submit([[dispatch] for dispatch in self._dispatches], timestamps)
        times_ms = timestamps.read_ms()
        return [(dispatch.label, float(ms)) for dispatch, ms in zip(self._dispatches, times_ms, strict=True)]

    def _submit(self, passes: Sequence[Sequence[_Dispatch]], timestamps: Timestamps | None) -> None:
        with gpu_errors(f"running {self.graph.name}"):
            encoder = self.device.handle.create_command_encoder()
            for index, dispatches in enumerate(passes):
                writes = timestamps.writes(index) if timestamps else None
                compute_pass = encoder.begin_compute_pass(timestamp_writes=writes)
                for dispatch in dispatches:
                    compute_pass.set_pipeline(dispatch.pipeline)
                    compute_pass.set_bind_group(0, dispatch.bind_group)
                    compute_pass.dispatch_workgroups(*dispatch.workgroups)
                compute_pass.end()
            if timestamps:
                timestamps.resolve(encoder)
            self.device.handle.queue.submit([encoder.finish()])


def _grow(memory: list[Any], device: Device, sizes_bytes: tuple[int, ...], names: list[str]) -> list[Any]:
    """Makes the i-th largest shared buffer at least the i-th size. Programs bound before keep the buffers they had."""
    for index, (size, name) in enumerate(zip(sizes_bytes, names, strict=True)):
        if index == len(memory):
            memory.append(allocate(device, size, name))
        elif memory[index].size < size:
            memory[index] = allocate(device, size, name)
    return memory


def _pack_params(calls: Sequence[KernelCall]) -> tuple[bytes, list[int]]:
    """All calls' Params structs in one block of bytes, equal ones once, and the offset of each call's."""
    packed: dict[bytes, int] = {}
    offsets: list[int] = []
    for call in calls:
        fields: Mapping[str, int | float] = call.params
        form = "<" + "".join("I" if isinstance(value, int) else "f" for value in fields.values())
        offsets.append(packed.setdefault(struct.pack(form, *fields.values()), len(packed) * _PARAMS_ALIGNMENT_BYTES))
    return b"".join(block.ljust(_PARAMS_ALIGNMENT_BYTES, b"\0") for block in packed) or bytes(16), offsets
