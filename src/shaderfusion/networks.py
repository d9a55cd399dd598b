"""A model's networks on one device: their weights, and their programs of the last few sizes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from shaderfusion.errors import DeviceError
from shaderfusion.families.family import UPDATE, Family
from shaderfusion.families.run_size import Memory, RunSize, usual_memory
from shaderfusion.gpu.device import Device
from shaderfusion.gpu.pipelines import Pipeline
from shaderfusion.graph.arena import Arena
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.store import WeightStore

__all__ = ["Networks"]

_MAX_SIZES = 2
"""Programs of so many sizes are kept for each network, so that two runs may take turns; in low memory pipelines."""


class Networks:
    """A model's networks, loaded when they are asked for and kept as long as there is room.

    `kernels` has the dtype that networks run in, unless their configuration asks for f32.

    In low memory networks take turns on the device: that which runs has its weights and one program there, and all
    others have nothing but pipelines.
    """

    def __init__(self, device: Device, model: Family, kernels: Kernels, memory: Memory | None = None) -> None:
        self.device = device
        self.model = model
        self.memory: Memory = usual_memory(device.capabilities) if memory is None else memory
        self._usual_networks = model.networks_in(self.memory)
        self._networks = {**self._usual_networks, **model.optional_networks}
        self._kernels = model.kernels_in(self.memory, kernels)
        self._weights = WeightStore(device)
        self._arena = Arena(device)
        self._programs: dict[str, dict[Hashable, Program]] = {name: {} for name in self._networks}
        self._pipelines: dict[RunSize, list[Pipeline]] = {}
        """In low memory those of all networks, of the last sizes: programs come and go."""
        self._is_open = True

    def load(self, size: RunSize) -> None:
        """Makes what all runs of that size need, where it is not there: weights, while pipelines compile beside.

        In low memory pipelines alone: weights, which are looked for but not read, are loaded when their network runs.
        """
        with self.device.turn:
            self.require_fits(size)
            if self.memory != "low":
                self._load(self._usual_networks, size)
            elif size not in self._pipelines:
                graphs = {self._record(name, size): self._source(name) for name in self._usual_networks}
                self._weights.check(graphs)
                for old in list(self._pipelines)[: 1 - _MAX_SIZES]:
                    del self._pipelines[old]
                self._pipelines[size] = self.device.pipelines.get_all(call for graph in graphs for call in graph.calls)

    def program(self, name: str, size: RunSize) -> Program:
        """The network's program for that size, made if it is not there."""
        key, programs = self._key(name, size), self._programs[name]
        if key not in programs:
            self.require_fits(size)
            self._load(self._together(name), size)
        programs[key] = programs.pop(key)  # the last one used comes last
        return programs[key]

    def require_fits(self, size: RunSize) -> None:
        """DeviceLimitError for a size that the device surely cannot hold; DeviceError after `close`."""
        self._require_open()
        dtype = self._kernels[self.model.denoiser].dtype
        self.model.require_fits(size, self.device.capabilities, dtype, self.memory)

    def dtype_of(self, name: str) -> DType:
        """What a network runs in: f32 once its values went over the range of f16."""
        return self._kernels[name].dtype

    @property
    def used_bytes(self) -> int:
        """Of the device's memory: weights, intermediate tensors, inputs and outputs of the programs that are there."""
        programs = [program for own in self._programs.values() for program in list(own.values())]
        externals = sum(tensor.size_bytes for program in programs for tensor in program.graph.externals)
        return self._weights.size_bytes + self._arena.size_bytes + externals

    def close(self) -> None:
        """Frees all memory of the device that the model takes. Nothing can be run any more."""
        with self.device.turn:
            if not self._is_open:
                return
            self._is_open = False
            for name, programs in self._programs.items():
                for key in list(programs):
                    self._drop(name, key)
            self._pipelines.clear()
            self._arena.close()
            self._weights.close()
            self.device.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _load(self, names: Iterable[str], size: RunSize) -> None:
        """Programs of these networks, where they are not there."""
        absent = [name for name in names if self._key(name, size) not in self._programs[name]]
        missing = {name: self._record(name, size) for name in absent}
        sources = {graph: self._source(name) for name, graph in missing.items()}
        with ThreadPoolExecutor(1) as beside, ExitStack() as undo:
            compiled = beside.submit(self.device.pipelines.get_all, [call for graph in sources for call in graph.calls])
            self._weights.claim(sources)  # of those of other sizes, what they share stays
            for graph in sources:
                undo.callback(self._weights.release, graph)
            self._make_room(missing)
            programs: dict[str, Program] = {}
            weights = self._weights.load(sources)
            pipelines = compiled.result()
            for (name, graph), buffers in zip(missing.items(), weights, strict=True):
                programs[name] = Program(self.device, graph, buffers, self._arena)
                undo.callback(programs[name].close)
            del pipelines  # the programs have them
            undo.pop_all()
        for name, program in programs.items():
            self._programs[name][self._key(name, size)] = program

    def _make_room(self, missing: Iterable[str]) -> None:
        """Frees programs of older sizes of these networks, and in low memory all that they do not run together with."""
        together = {other for name in missing for other in self._together(name)}
        for name, programs in self._programs.items():
            kept = int(name in together) if self.memory == "low" else _MAX_SIZES
            for key in list(programs)[: max(0, len(programs) + (name in missing) - kept)]:
                self._drop(name, key)
        if self.memory == "low":
            self._arena.trim()
            self.device.wait()  # a buffer is freed when the device is done with it

    def _together(self, name: str) -> tuple[str, ...]:
        """The networks that are on the device whenever this one is."""
        return next((names for names in self.model.turns(self.memory) if name in names), (name,))

    def _drop(self, name: str, key: Hashable) -> None:
        program = self._programs[name].pop(key)
        program.close()
        self._weights.release(program.graph)

    def _change_kernels(self, name: str, kernels: Kernels) -> None:
        """The network's next program is made with these; it has none now."""
        for changed in (name, UPDATE) if name == self.model.denoiser and UPDATE in self._networks else (name,):
            for key in list(self._programs[changed]):
                self._drop(changed, key)
            self._kernels[changed] = kernels
        self._pipelines.clear()

    def _key(self, name: str, size: RunSize) -> Hashable:
        return self._networks[name].size_of(size)

    def _record(self, name: str, size: RunSize) -> Graph:
        return self._networks[name].record(self._kernels[name], size)

    def _source(self, name: str) -> TensorSource:
        return self.model.sources[self._networks[name].source]

    def _require_open(self) -> None:
        if not self._is_open:
            raise DeviceError("this pipeline is closed; open the model again with from_pretrained")
