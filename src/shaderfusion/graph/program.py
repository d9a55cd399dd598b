"""Graph + memory plan + device -> pipelines and bind groups, recorded once and replayed each step."""

import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.buffers import allocate, download_all, upload
from shaderfusion.gpu.device import Device
from shaderfusion.gpu.failures import gpu_errors
from shaderfusion.gpu.pipelines import Pipeline
from shaderfusion.gpu.timing import Timestamps
from shaderfusion.graph.arena import Arena
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.kernels.call import KernelCall
from shaderfusion.tensor import TensorSpec

__all__ = ["Buffers", "Program", "divide"]

Buffers = dict[TensorSpec, Any]
"""GPU buffers of weights, inputs and outputs."""

_PARAMS_ALIGNMENT_BYTES = 256  # WebGPU's largest min-uniform-buffer-offset-alignment


_PIECE_MS = 50.0
"""What one submission takes at most where it holds several calls: Windows ends one that takes 2 s, and a device may
slow down after it was measured."""
_FIRST_PIECE_CALLS = 64
"""A run's first submission is short, so that the GPU starts early; the others are encoded while it works."""


class _Dispatch(NamedTuple):
    pipeline: Any
    bind_group: Any
    workgroups: tuple[int, int, int]
    label: str


class Program:
    """A graph, ready to run on one device.

    `weights` holds the buffers of weights; those of inputs and outputs are the program's own. The intermediate tensors
    live in an arena, which programs that never run at the same time can share.
    """

    def __init__(self, device: Device, graph: Graph, weights: Buffers, arena: Arena | None = None) -> None:
        self.device = device
        self.graph = graph
        self.plan = plan_memory(graph.calls)
        self.pipelines = device.pipelines.get_all(graph.calls)
        self._weights = weights
        self._external: Buffers = {}
        self._arena = Arena(device) if arena is None else arena
        self._arena.join(self, list(zip(self.plan.buffer_sizes_bytes, self._largest(), strict=True)))
        for tensor in graph.externals:
            self._external[tensor.storage] = allocate(device, tensor.size_bytes, tensor.name)
        params, self._params_offsets = _pack_params(graph.calls)
        self._params = device.handle.create_buffer_with_data(data=params, usage="UNIFORM")
        self._bound_version = -1
        self._bound: list[_Dispatch] = []
        self._pieces: tuple[list[range], list[range]] | None = None
        """Of the calls that are done once, and of the others."""
        self._ahead: tuple[int, Any] | None = None
        """The arena's version, and the commands of the next run's first piece."""

    def close(self) -> None:
        """Frees the memory of inputs and outputs, and leaves the arena. The program cannot run any more."""
        self._arena.leave(self)
        for buffer in (*self._external.values(), self._params):
            buffer.destroy()
        self._external, self._weights, self._bound, self._bound_version = {}, {}, [], -1
        self._ahead = None

    def _largest(self) -> list[str]:
        """By shared buffer, the name of the largest tensor in it, for errors."""
        names: dict[int, str] = {}
        for tensor, place in self.plan.place_of.items():
            names.setdefault(place.buffer, tensor.name)
        return [names[index] for index in range(len(names))]

    def _buffer(self, tensor: TensorSpec) -> Any:
        storage = tensor.storage
        if storage.role == "intermediate":
            return self._arena.buffers[self.plan.place_of[storage].buffer]
        return self._weights[storage] if storage.role == "weight" else self._external[storage]

    @property
    def _dispatches(self) -> list[_Dispatch]:
        """The calls with their bind groups, made anew where the arena's buffers have changed."""
        if self._bound_version != self._arena.version:
            calls = zip(self.graph.calls, self.pipelines, self._params_offsets, strict=True)
            self._bound = [self._bind(*call) for call in calls]
            self._bound_version = self._arena.version
        return self._bound

    def _bind(self, call: KernelCall, pipeline: Pipeline, params_offset: int) -> _Dispatch:
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
        return self.read_all([name])[name]

    def read_all(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Waits for the runs so far and reads some inputs or outputs, in one transfer."""
        tensors = [self._external_tensor(name) for name in names]
        arrays = download_all(self.device, [(self._buffer(tensor), tensor) for tensor in tensors])
        return dict(zip(names, arrays, strict=True))

    def _external_tensor(self, name: str) -> TensorSpec:
        tensors = self.graph.inputs | self.graph.outputs
        if name not in tensors:
            raise ShapeError(f"{self.graph.name}: no input or output {name!r}; it has {', '.join(tensors)}")
        return tensors[name]

    def run(self, *, again: bool = False) -> None:
        """Submits every call, in order: in pieces, of which each is encoded while the GPU works on those before.

        With `again` the graph's calls of `once` are left out: no input that they read was written since the last run.
        The first run of all waits for each piece, to learn how long they take; the others do not wait for the GPU.
        """
        if self._pieces is None:
            self._pieces = self._measure_pieces()
        else:
            once, others = self._pieces
            for piece in [] if again else once:
                self._submit(self._encode([piece]))
            for piece in others:
                version, commands = self._ahead or (None, None)
                self._ahead = None
                self._submit(commands if version == self._arena.version else self._encode([piece]))

    def encode_ahead(self) -> None:
        """Encodes the first piece of the next run while the GPU works on this one, so that the next starts at once.

        For runs that others follow: wgpu 0.32 never frees commands that are not submitted, nor their pipelines.
        """
        if self._pieces is not None and self._ahead is None:
            self._ahead = (self._arena.version, self._encode([self._pieces[1][0]]))

    def submit(self) -> None:
        """Submits every call at once, without waiting for the GPU: for calls that are known to be short."""
        self._submit(self._encode([range(len(self.graph.calls))]))

    def _measure_pieces(self) -> tuple[list[range], list[range]]:
        """Runs once, by pieces of ever more calls as long as they are quick, and divides the calls by their times."""
        times_ms: list[float] = []  # by call, its share of its piece
        count = 1
        while len(times_ms) < len(self.graph.calls):
            piece = range(len(times_ms), min(len(times_ms) + count, len(self.graph.calls)))
            started = time.perf_counter()
            self._submit(self._encode([piece]))
            self.device.wait()
            ms = 1e3 * (time.perf_counter() - started)
            times_ms += [ms / len(piece)] * len(piece)
            # The next calls may each take several times as long, where a network changes its resolution.
            count = 2 * count if ms < _PIECE_MS / 8 else max(1, count // 2) if ms > _PIECE_MS else count
        num_once = self.graph.num_once
        once, others = divide(times_ms[:num_once]), divide(times_ms[num_once:])
        return once, [range(num_once + piece.start, num_once + piece.stop) for piece in others]

    def time_ms(self) -> float:
        """Runs again and waits: milliseconds on the GPU's clock. DeviceError without timestamps."""
        return float(self._time(lambda piece: [piece]).sum())

    def profile_ms(self) -> list[tuple[str, float]]:
        """Runs again with a timestamp around each call: (label, ms) in order. DeviceError without timestamps."""
        times_ms = self._time(lambda piece: [range(index, index + 1) for index in piece])
        calls = self.graph.calls[self.graph.num_once :]
        return [(call.label, float(ms)) for call, ms in zip(calls, times_ms, strict=True)]

    def _time(self, passes_of: Callable[[range], list[range]]) -> np.ndarray:
        """Milliseconds of each pass, of which each piece has those that `passes_of` says."""
        if self._pieces is None:
            self.run()
        _, others = self._pieces or ([], [])
        submissions = [passes_of(piece) for piece in others]
        timestamps = Timestamps(self.device, sum(map(len, submissions)))
        for passes in submissions:
            self._submit(self._encode(passes, timestamps))
        return timestamps.read_ms()

    def _encode(self, passes: Sequence[range], timestamps: Timestamps | None = None) -> Any:
        """The commands of some passes of calls."""
        dispatches = self._dispatches
        with gpu_errors(f"running {self.graph.name}"):
            encoder = self.device.handle.create_command_encoder()
            for calls in passes:
                writes = timestamps.next_writes() if timestamps else None
                compute_pass = encoder.begin_compute_pass(timestamp_writes=writes)
                for dispatch in dispatches[calls.start : calls.stop]:
                    compute_pass.set_pipeline(dispatch.pipeline)
                    compute_pass.set_bind_group(0, dispatch.bind_group)
                    compute_pass.dispatch_workgroups(*dispatch.workgroups)
                compute_pass.end()
            return encoder.finish()

    def _submit(self, commands: Any) -> None:
        with gpu_errors(f"running {self.graph.name}"):
            self.device.handle.queue.submit([commands])


def divide(times_ms: Sequence[float], first_calls: int = _FIRST_PIECE_CALLS, most_ms: float = _PIECE_MS) -> list[range]:
    """Calls, by the time that each takes, as pieces of at most `most_ms`, or of one call.

    The first has at most `first_calls`, each other at most as many as all before it.
    """
    pieces: list[range] = []
    start, ms = 0, 0.0
    for index, call_ms in enumerate(times_ms):
        if index > start and (ms + call_ms > most_ms or index - start >= max(first_calls, start)):
            pieces.append(range(start, index))
            start, ms = index, 0.0
        ms += call_ms
    return [*pieces, range(start, len(times_ms))] if times_ms else []


def _pack_params(calls: Sequence[KernelCall]) -> tuple[bytes, list[int]]:
    """All calls' Params structs in one block of bytes, equal ones once, and the offset of each call's."""
    packed: dict[bytes, int] = {}
    offsets: list[int] = []
    for call in calls:
        fields: Mapping[str, int | float] = call.params
        form = "<" + "".join("I" if isinstance(value, int) else "f" for value in fields.values())
        offsets.append(packed.setdefault(struct.pack(form, *fields.values()), len(packed) * _PARAMS_ALIGNMENT_BYTES))
    return b"".join(block.ljust(_PARAMS_ALIGNMENT_BYTES, b"\0") for block in packed) or bytes(16), offsets
