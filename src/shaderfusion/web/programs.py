"""Graphs as data that a browser replays: shaders, pipelines, buffers, parameters, dispatches (docs/browser.md)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from shaderfusion.gpu.pipelines import pipeline_key
from shaderfusion.gpu.shader import Directives, compose
from shaderfusion.graph.graph import Graph, Weight
from shaderfusion.graph.memory_plan import largest_of_each, plan_memory
from shaderfusion.kernels.call import KernelCall
from shaderfusion.tensor import VIEW_ALIGNMENT_BYTES, DType, TensorSpec
from shaderfusion.web.shards import Shards
from shaderfusion.weights.checkpoint import StoredTensor
from shaderfusion.weights.footprint import filters_bytes
from shaderfusion.weights.slices import Slice, filters_room, prepare_calls, slices

__all__ = ["Programs", "SourcedGraph", "tensor_name"]

WGSL: Directives = {"f16": ("enable f16;",), "subgroups": ("enable subgroups;",)}
"""Extensions as the specification declares them."""

_COMPUTE = 4
"""GPUShaderStage.COMPUTE"""

_PARAMS_BYTES = 256
"""From one call's parameters to the next: WebGPU's largest minUniformBufferOffsetAlignment."""


class SourcedGraph(NamedTuple):
    """A graph, and the component that its weights are of."""

    graph: Graph
    source: str


class _Place(NamedTuple):
    """Where a tensor lies."""

    buffer: int
    offset: int = 0


class _Loaded(NamedTuple):
    """A weight, its component and its buffer."""

    weight: Weight
    source: str
    buffer: int


class _Upload(NamedTuple):
    """A slice of a weight, and where its bytes are."""

    shard: int
    offset: int
    loaded: _Loaded
    part: Slice


def tensor_name(source: str, path: str) -> str:
    """What a tensor is called in shards."""
    return f"{source}/{path}"


class _Indexed:
    """Values by index, each once. Those of a base come first, and are none of its own."""

    def __init__(self, base: _Indexed | None = None) -> None:
        self._index_of: dict[Hashable, int] = dict(base._index_of) if base else {}
        self.own: list[Any] = []

    def add(self, key: Hashable, make: Callable[[], Any]) -> int:
        """The index of the value with that key, which is made where there is none yet."""
        if key not in self._index_of:
            self._index_of[key] = len(self._index_of)
            self.own.append(make())
        return self._index_of[key]


class Programs:
    """Some networks that share buffers, pipelines and weights. With a `base` they share those of it as well, whose
    lists theirs continue."""

    def __init__(self, base: Programs | None = None) -> None:
        self._shaders = _Indexed(base and base._shaders)
        self._pipelines = _Indexed(base and base._pipelines)
        self._buffers: list[int] = []
        self._first_buffer = base._first_buffer + len(base._buffers) if base else 0
        self._known: dict[tuple[str, object], int] = dict(base._known) if base else {}
        """Buffers of weights, by component and form."""
        self._loaded: list[_Loaded] = []
        self._networks: dict[str, dict[str, Any]] = {}
        self._prepare: dict[str, Any] = {}
        self.memory = {"weights": 0, "tensors": 0, "loading": 0}
        """Bytes of the device."""
        self.calls: list[KernelCall] = []
        """All that are replayed."""
        self._params: list[tuple[int, ...]] = []
        self._params_buffer = self._add_buffer(_PARAMS_BYTES, "tensors")
        self._params_bindings: dict[tuple[int, ...], list[int]] = dict(base._params_bindings) if base else {}

    def as_json(self) -> dict[str, Any]:
        """What the player reads."""
        return {
            "shaders": self._shaders.own,
            "pipelines": self._pipelines.own,
            "buffers": self._buffers,
            "params": {"buffer": self._params_buffer, "values": self._params},
            "networks": self._networks,
            "prepare": self._prepare,
        }

    @property
    def largest_buffer_bytes(self) -> int:
        """Of its own buffers."""
        return max(self._buffers)

    def add(self, graphs: Mapping[str, SourcedGraph], externals: Mapping[str, int] | None = None) -> None:
        """Networks by name, of which one runs at a time. `externals` are buffers of inputs and outputs that there are,
        by name."""
        plans = {name: plan_memory(graph.calls) for name, (graph, _) in graphs.items()}
        arena = largest_of_each([(size, "") for size in plan.buffer_sizes_bytes] for plan in plans.values())
        first = self._first_buffer + len(self._buffers)
        for size, _ in arena:
            self._add_buffer(size, "tensors")
        for name, (graph, source) in graphs.items():
            plan = plans[name]
            places = {
                tensor: _Place(first + place.buffer, place.offset_bytes) for tensor, place in plan.place_of.items()
            }
            named = {**graph.inputs, **graph.outputs}
            for key, tensor in named.items():
                known = (externals or {}).get(key)
                places[tensor] = _Place(self._add_buffer(tensor.size_bytes, "tensors") if known is None else known)
            for tensor in graph.kept:
                places[tensor] = _Place(self._add_buffer(tensor.size_bytes, "tensors"))
            for weight in graph.weights.values():
                places[weight.tensor] = _Place(self._add_weight(source, weight))
            self._networks[name] = {
                "tensors": {key: _tensor(tensor, places) for key, tensor in named.items()},
                "tables": {key: tensor_name(source, *table.paths) for key, table in graph.tables.items()},
                "once": graph.num_once,
                "calls": [self._call(call, places) for call in graph.calls],
            }

    def externals_of(self, network: str) -> dict[str, int]:
        """The buffers of its inputs and outputs, by name."""
        return {name: tensor["buffer"] for name, tensor in self._networks[network]["tensors"].items()}

    def add_preparation(self, shards: Shards, max_bytes: int) -> None:
        """The way from the shards' bytes to all weights that were added, `max_bytes` of them at a time."""
        weights = [loaded.weight for loaded in self._loaded]
        if not weights:
            self._prepare = {"words": -1, "temporary": [], "batches": []}
            return
        words = TensorSpec("weights.words", (max_bytes // 4,), "u32", "weight")
        flags = TensorSpec("weights.flags", (1,), "u32", "weight")
        transformed: list[DType] = [w.tensor.dtype for w in weights if w.layout.startswith("winograd")]
        filters = {dtype: filters_room(dtype, filters_bytes(weights)) for dtype in dict.fromkeys(transformed)}
        room = [words, flags, *filters.values()]
        places = {spec: _Place(self._add_buffer(spec.size_bytes, "loading")) for spec in room}
        places |= {loaded.weight.tensor: _Place(loaded.buffer) for loaded in self._loaded}
        batches: list[dict[str, Any]] = []
        filled = 0
        for shard, offset, (weight, _, _), part in sorted(self._uploads(shards, max_bytes), key=lambda u: u.shard):
            size = part.data.size
            if not batches or batches[-1]["shard"] != shard or filled + size > max_bytes:
                batches.append({"shard": shard, "uploads": [], "calls": []})
                filled = 0
            batches[-1]["uploads"].append([offset, size, filled])
            source = words.rows(filled // 4, -(-size // 4))
            own_filters = filters.get(weight.tensor.dtype, words)
            for call in prepare_calls(source, part.stored, weight, part, flags, own_filters, 0):
                labelled = replace(call, label=f"{weight.tensor.name}/{call.name}")
                batches[-1]["calls"].append(self._call(labelled, places))
            filled += -(-size // VIEW_ALIGNMENT_BYTES) * VIEW_ALIGNMENT_BYTES
        temporary = [places[spec].buffer for spec in room]
        self._prepare = {"words": places[words].buffer, "temporary": temporary, "batches": batches}

    def _uploads(self, shards: Shards, max_bytes: int) -> Iterator[_Upload]:
        for loaded in self._loaded:
            weight = loaded.weight
            stored = [shards.stored[tensor_name(loaded.source, path)] for path in weight.paths]
            # Slices of bytes that nobody reads, which take no memory: only where they lie is asked for.
            tensors = [StoredTensor(own.dtype, np.broadcast_to(np.uint8(0), own.size_bytes)) for own in stored]
            for part in slices(weight, tensors, max_bytes):
                own = stored[part.tensor]
                shard, offset = own.find(part.rows.start * own.row_bytes, part.data.size)
                yield _Upload(shard, offset, loaded, part)

    def _add_buffer(self, size_bytes: int, purpose: str) -> int:
        self._buffers.append(size_bytes)
        self.memory[purpose] += size_bytes
        return self._first_buffer + len(self._buffers) - 1

    def _add_weight(self, source: str, weight: Weight) -> int:
        key = (source, weight.form)
        if key not in self._known:
            self._known[key] = self._add_buffer(weight.tensor.size_bytes, "weights")
            self._loaded.append(_Loaded(weight, source, self._known[key]))
        return self._known[key]

    def _call(self, call: KernelCall, places: Mapping[TensorSpec, _Place]) -> dict[str, Any]:
        self.calls.append(call)
        bindings: list[list[int] | None] = [self._bind_params(call)]
        for tensor in (binding.tensor for binding in call.bindings):
            buffer, offset = places[tensor.storage]
            bindings.append([buffer, offset + tensor.offset_bytes, tensor.size_bytes])
        return {
            "pipeline": self._add_pipeline(call),
            "workgroups": [*call.workgroups],
            "bindings": bindings,
            "label": call.label,
        }

    def _add_pipeline(self, call: KernelCall) -> int:
        def describe() -> dict[str, Any]:
            types = {0: "uniform"} if call.params else {}
            for index, binding in enumerate(call.bindings, start=1):
                types[index] = "read-only-storage" if binding.access == "read" else "storage"
            entries = [
                {"binding": index, "visibility": _COMPUTE, "buffer": {"type": kind}} for index, kind in types.items()
            ]
            code = compose(call, WGSL).code
            shader = self._shaders.add(code, lambda: code)
            return {"shader": shader, "entry_point": call.entry_point, "label": call.name, "entries": entries}

        return self._pipelines.add(pipeline_key(call), describe)

    def _bind_params(self, call: KernelCall) -> list[int] | None:
        """Where their words are, floats as their bits."""
        if not call.params:
            return None
        form = "<" + "".join("I" if isinstance(value, int) else "f" for value in call.params.values())
        words = struct.unpack(f"<{len(call.params)}I", struct.pack(form, *call.params.values()))
        if words not in self._params_bindings:
            offset = _PARAMS_BYTES * len(self._params)
            self._params_bindings[words] = [self._params_buffer, offset, 4 * len(words)]
            if self._params:  # the first one's are there
                self._buffers[0] += _PARAMS_BYTES
                self.memory["tensors"] += _PARAMS_BYTES
            self._params.append(words)
        return self._params_bindings[words]


def _tensor(tensor: TensorSpec, places: Mapping[TensorSpec, _Place]) -> dict[str, Any]:
    return {
        "buffer": places[tensor].buffer,
        "dtype": tensor.dtype,
        "rows": tensor.size // tensor.shape[-1],
        "width": tensor.shape[-1],
        "channels": tensor.channels,
    }
